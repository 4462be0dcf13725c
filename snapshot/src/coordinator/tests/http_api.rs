//! The HTTP API itself: its document, problems, idempotency keys and operations.

use std::collections::BTreeSet;

use reqwest::{Client, Method, Response, StatusCode};
use serde_json::{Value, json};

use super::*;

/// A server on loopback, and a client that sees its answers as they are.
struct Api {
    url: String,
    stop: StopHandle,
    http: Client,
    coordinator: Arc<Coordinator>,
}

impl Api {
    fn start(fleet: &Fleet) -> Api {
        let coordinator = fleet.coordinator(|_| {});
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), None, false).unwrap();
        let (url, stop) = (listener.url(), StopHandle::new());
        let router = api::router(Arc::clone(&coordinator), OpenApiRouter::new());
        tokio::spawn(listener.serve(router, Admits::People, stop.clone()));
        Api { url, stop, http: Connector::new(None, false).unwrap().bare(), coordinator }
    }

    /// Its state directory is free afterwards.
    async fn stop(self) {
        self.stop.shutdown();
        drop(self.http);
        stop(self.coordinator).await;
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url))
    }

    fn create(&self, name: &str) -> reqwest::RequestBuilder {
        self.request(Method::POST, "/api/v1/snapshots").json(&json!({ "name": name, "mode": "timed" }))
    }

    async fn get(&self, path: &str) -> Value {
        self.request(Method::GET, path).send().await.unwrap().json().await.unwrap()
    }
}

fn content_type(response: &Response) -> String {
    response.headers()["content-type"].to_str().unwrap().to_owned()
}

#[tokio::test]
async fn the_document_describes_every_operation_once_and_refers_to_nothing_else() {
    let fleet = Fleet::new(near());
    let api = Api::start(&fleet);
    let document = api.get("/api/v1/openapi.json").await;
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    let mut ids = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let id = operation["operationId"].as_str().unwrap();
            assert!(ids.insert(id.to_owned()), "{id} names two operations");
            let said = operation["summary"].as_str().or(operation["description"].as_str());
            assert!(said.is_some_and(|text| !text.is_empty()), "{method} {path} says nothing");
            let problem = &operation["responses"]["default"]["content"]["application/problem+json"];
            assert!(problem.is_object(), "{method} {path} has no problems");
        }
    }
    assert!(ids.contains("create_snapshot") && ids.contains("operation_events"), "{ids:?}");
    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(object) => {
                found.extend(object.get("$ref").and_then(Value::as_str).map(str::to_owned));
                object.values().for_each(|value| references(value, found));
            }
            Value::Array(array) => array.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    assert!(found.len() > 20);
    for reference in found {
        assert!(document.pointer(&reference[1..]).is_some(), "{reference} leads nowhere");
    }
}

#[tokio::test]
async fn every_refusal_of_the_api_is_a_problem() {
    let fleet = Fleet::new(near());
    let api = Api::start(&fleet);
    let post = |path: &str, body: &str| {
        let request = api.request(Method::POST, path).header("content-type", "application/json");
        request.body(body.to_owned())
    };
    let snapshots = "/api/v1/snapshots";
    let cases = [
        (400, post(snapshots, "{")),
        (422, post(snapshots, r#"{"nmae": "x"}"#)),
        (422, post(snapshots, r#"{"mode": 5}"#)),
        (422, post(snapshots, "[]")),
        (422, post(snapshots, r#"{"name": "not a name"}"#)),
        (413, post(snapshots, &format!(r#"{{"name": "{}"}}"#, "x".repeat(2 << 20)))),
        (415, api.request(Method::POST, snapshots).body("{}")),
        (400, post(snapshots, "{}").header("idempotency-key", "x".repeat(256))),
        (404, api.request(Method::GET, "/api/v1/nothing")),
        (404, api.request(Method::GET, "/api/v1/snapshots/none")),
        (404, api.request(Method::GET, &format!("/api/v1/operations/{}", Uuid::nil()))),
        (400, api.request(Method::GET, "/api/v1/operations/none")),
        (405, api.request(Method::PUT, snapshots)),
        (400, api.request(Method::GET, "/api/v1/snapshots/s?evidence=many")),
        (400, api.request(Method::DELETE, "/api/v1/volumes/a/data?with_snapshots=perhaps")),
        (404, api.request(Method::POST, "/api/v1/snapshots/none/verify")),
    ];
    for (status, request) in cases {
        let response = request.send().await.unwrap();
        let url = response.url().to_string();
        assert_eq!(response.status(), status, "{url}");
        assert_eq!(content_type(&response), "application/problem+json", "{url}");
        let problem: crate::orders::Problem = response.json().await.unwrap();
        assert_eq!(problem.status, status, "{url}");
        assert!(!problem.detail.is_empty() && !problem.detail.contains('\n'), "{url}: {problem:?}");
    }
}

#[tokio::test]
async fn a_repeated_request_is_answered_as_the_first_was() {
    let fleet = Fleet::new(near());
    let api = Api::start(&fleet);
    let with_key =
        |api: &Api, key: &str, name: &str| api.create(name).header("Idempotency-Key", key.to_owned());
    let id_of = async |response: Response| {
        assert_eq!(response.status(), StatusCode::CREATED);
        response.json::<Value>().await.unwrap()["id"].clone()
    };
    // While the first is under way.
    let (first, second) = tokio::join!(with_key(&api, "k1", "s1").send(), with_key(&api, "k1", "s1").send());
    let id = id_of(first.unwrap()).await;
    assert_eq!(id_of(second.unwrap()).await, id);
    // Afterwards, and at once.
    assert_eq!(id_of(with_key(&api, "k1", "s1").send().await.unwrap()).await, id);
    let later = with_key(&api, "k1", "s1").header("Prefer", "respond-async").send().await.unwrap();
    assert_eq!(later.status(), StatusCode::ACCEPTED);
    let other = with_key(&api, "k1", "s2").send().await.unwrap();
    assert_eq!(other.status(), StatusCode::UNPROCESSABLE_ENTITY);
    // A refusal is an answer, too.
    let taken = with_key(&api, "k2", "s1").send().await.unwrap();
    assert_eq!(taken.status(), StatusCode::CONFLICT);
    let id2 = id_of(with_key(&api, "k3", "s3").send().await.unwrap()).await;
    api.request(Method::DELETE, "/api/v1/snapshots/s1").send().await.unwrap();
    assert_eq!(with_key(&api, "k2", "s1").send().await.unwrap().status(), StatusCode::CONFLICT);
    api.stop().await;

    let api = Api::start(&fleet);
    assert_eq!(id_of(with_key(&api, "k1", "s1").send().await.unwrap()).await, id, "although it is deleted");
    assert_eq!(with_key(&api, "k2", "s1").send().await.unwrap().status(), StatusCode::CONFLICT);
    assert_eq!(id_of(with_key(&api, "k3", "s3").send().await.unwrap()).await, id2);
    let later = with_key(&api, "k3", "s3").header("Prefer", "respond-async").send().await.unwrap();
    let operation = api.get(later.headers()["location"].to_str().unwrap()).await;
    assert_eq!((&operation["state"], &operation["result"]["id"]), (&json!("succeeded"), &id2));
    assert_eq!(api.coordinator.list().await.unwrap().iter().filter(|it| it.name == "s1").count(), 0);
    api.stop().await;
}

#[tokio::test]
async fn a_request_that_a_crash_cut_short_is_begun_if_it_was_not_and_fails_if_it_was() {
    let fleet = Fleet::new(near());
    let request =
        CreateRequest { name: Some("s1".to_owned()), mode: RequestedMode::Timed, ..CreateRequest::default() };
    let digest = blake3::hash(&serde_json::to_vec(&request).unwrap()).to_hex().to_string();
    {
        let catalogue = fleet.catalogue();
        catalogue.claim("not begun", &digest, Uuid::now_v7()).unwrap();
        let id = Uuid::now_v7();
        catalogue.claim("begun", &digest, id).unwrap();
        catalogue.begin(id, "s1", None).unwrap();
    }
    let api = Api::start(&fleet);
    let send = async |key| api.create("s1").header("Idempotency-Key", key).send().await.unwrap();
    let failed = send("begun").await;
    assert_eq!(failed.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert!(failed.text().await.unwrap().contains("the server stopped while the snapshot was being taken"));
    assert_eq!(send("not begun").await.status(), StatusCode::CREATED);
}

#[tokio::test]
async fn long_work_is_an_operation_with_events() {
    let fleet = Fleet::new(near());
    let api = Api::start(&fleet);
    let accepted = api.create("s1").header("Prefer", "wait=1, respond-async").send().await.unwrap();
    assert_eq!(accepted.status(), StatusCode::ACCEPTED);
    let location = accepted.headers()["location"].to_str().unwrap().to_owned();
    let operation: Value = accepted.json().await.unwrap();
    assert_eq!(location, format!("/api/v1/operations/{}", operation["id"].as_str().unwrap()));
    assert_eq!((&operation["kind"], &operation["target"]), (&json!("create_snapshot"), &json!("s1")));

    // To its end, and again from the middle.
    let events = format!("{location}/events");
    let response = api.request(Method::GET, &events).send().await.unwrap();
    assert_eq!(content_type(&response), "text/event-stream");
    let text = response.text().await.unwrap();
    assert!(text.starts_with("id: 0\nevent: progress\ndata: {"), "{text}");
    let count = text.matches("\n\n").count();
    assert!(count > 5 && text.matches("event: result").count() == 1, "{text}");
    let rest = api.request(Method::GET, &events).header("Last-Event-ID", (count - 2).to_string());
    let rest = rest.send().await.unwrap().text().await.unwrap();
    assert!(
        rest.starts_with(&format!("id: {}\nevent: result\n", count - 1)) && text.ends_with(&rest),
        "{rest}"
    );

    let operation = api.get(&location).await;
    assert_eq!((&operation["state"], &operation["problem"]), (&json!("succeeded"), &Value::Null));
    assert_eq!(operation["result"]["id"], operation["id"], "its id is the snapshot's");
    assert_eq!(operation["progress"]["attempt"]["step"], "commit");

    let verify = api.request(Method::POST, "/api/v1/snapshots/s1/verify");
    let verified = verify.header("Accept", "text/event-stream").send().await.unwrap().text().await.unwrap();
    assert!(
        verified.contains("a/data is read") && verified.contains("\"verdict\":\"consistent\""),
        "{verified}"
    );
    let missing = api.request(Method::DELETE, "/api/v1/snapshots/none").header("Prefer", "respond-async");
    let missing = missing.send().await.unwrap();
    assert_eq!(missing.status(), StatusCode::ACCEPTED);
    let location = missing.headers()["location"].to_str().unwrap().to_owned();
    eventually(async || api.get(&location).await["state"] == "failed").await;
    assert_eq!(api.get(&location).await["problem"]["status"], 404);
    let all = api.get("/api/v1/operations").await;
    let kinds: Vec<_> = all.as_array().unwrap().iter().map(|it| it["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["delete_snapshot", "verify_snapshot", "create_snapshot"]);
}
