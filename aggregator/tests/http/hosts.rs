//! The Host header on loopback.

use crate::support::App;

#[tokio::test]
async fn a_page_of_the_internet_cannot_read_what_loopback_tells() {
    let app = App::start().await;
    for path in ["/api/v1/nodes", "/federate?match[]=x", "/", "/metrics", "/-/ready"] {
        let detail = app.get_with(path, &[("host", "evil.example:9640")]).await.problem(421);
        assert!(detail.contains("localhost"), "{detail}");
        assert_eq!(
            app.get_with(path, &[("host", "localhost:9640")]).await.status,
            200,
            "{path}"
        );
    }
}
