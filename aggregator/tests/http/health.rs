//! Health, readiness, and what is answered when the database cannot be asked.

use sqlx::ConnectOptions as _;

use crate::support::App;

#[tokio::test]
async fn a_healthy_server_is_ready() {
    let app = App::start().await;
    for path in ["/-/healthy", "/-/ready"] {
        let answer = app.get(path).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_database_it_lives_but_is_not_ready() {
    let (app, database) = App::start_with_database().await;
    let mut admin = database.options.clone().database("postgres").connect().await.unwrap();
    app.db.close().await;
    let sql = format!("alter database {0} allow_connections false", database.name);
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
        .execute(&mut admin)
        .await
        .unwrap();
    let end = "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1";
    sqlx::query(end).bind(&database.name).execute(&mut admin).await.unwrap();

    let answer = loop {
        let answer = app.get("/-/ready").await;
        if answer.status == 503 {
            break answer;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    assert!(answer.text().starts_with("not ready: "), "{}", answer.text());
    assert_eq!(app.get("/-/healthy").await.status, 200);
    let asked = app.get("/api/v1/nodes").await;
    assert!(asked.problem(503).contains("database"), "{}", asked.text());
    assert_eq!(asked.header("retry-after"), "2");
    assert_eq!(
        app.get("/federate?match[]=x").await.status,
        200,
        "the live table needs no database"
    );
}
