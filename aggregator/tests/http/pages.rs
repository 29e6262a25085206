//! The web pages.

use crate::support::App;

#[tokio::test]
async fn every_place_of_the_application_is_its_index_page() {
    let app = App::start().await;
    let index = app.get("/").await;
    assert_eq!(index.status, 200);
    assert_eq!(index.header("content-type"), "text/html; charset=utf-8");
    assert_eq!(index.header("cache-control"), "no-cache");
    assert!(index.text().to_lowercase().contains("<!doctype html"));
    for path in ["/pods", "/pods/shop/web", "/index.html", "/?from=-15m"] {
        assert_eq!(app.get(path).await.body, index.body, "{path}");
    }
}

#[tokio::test]
async fn a_file_that_is_missing_is_missing() {
    let app = App::start().await;
    for path in [
        "/assets/nosuch",
        "/assets/nosuch.js",
        "/favicon.nosuch",
        "/..%2f..%2fCargo.toml",
        "/../Cargo.toml",
    ] {
        app.get(path).await.problem(404);
    }
}

#[tokio::test]
async fn a_page_that_is_known_is_not_sent_again() {
    let app = App::start().await;
    let index = app.get("/").await;
    let tag = index.header("etag");
    assert!(tag.len() > 10);
    let again = app.get_with("/", &[("if-none-match", tag)]).await;
    assert_eq!((again.status.as_u16(), again.body.len()), (304, 0));
    assert_eq!(app.get_with("/", &[("if-none-match", "\"other\"")]).await.status, 200);
}

#[tokio::test]
async fn no_answer_may_be_framed_or_sniffed_or_scripted_by_others() {
    let app = App::start().await;
    for path in ["/", "/api/v1/nodes", "/api/v1/nosuch", "/metrics"] {
        let answer = app.get(path).await;
        assert!(
            answer.header("content-security-policy").contains("default-src 'self'"),
            "{path}"
        );
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(answer.header("x-frame-options"), "DENY", "{path}");
        assert_eq!(answer.header("access-control-allow-origin"), "", "{path}");
    }
}
