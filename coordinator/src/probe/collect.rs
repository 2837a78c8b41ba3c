//! Reads the clients' logs through the swarm.

use std::collections::HashMap;
use std::time::Duration;

use bollard::Docker;
use bollard::query_parameters::{ListServicesOptionsBuilder, LogsOptionsBuilder};
use futures_util::StreamExt;

use super::ProbeError;
use super::report::{ProbeReport, StepSpan, Tally};

/// Label of the probe's services in `compose/probe.yaml`; its value is `server` or `client`.
pub const PROBE_LABEL: &str = "io.requeen.probe";

/// A manager waits for the log of every node that has a task, and for a node that is down it does so
/// for long: what has come until nothing came for this time is the report.
const LOG_SILENCE: Duration = Duration::from_secs(20);

/// Adds up the logs of every client there is or was, as far as the swarm still keeps their tasks,
/// and places each failure against `steps`. A node that does not answer is a note in the report.
pub async fn collect(docker: &Docker, steps: &[StepSpan]) -> Result<ProbeReport, ProbeError> {
    let filters = HashMap::from([("label", vec![format!("{PROBE_LABEL}=client")])]);
    let options = ListServicesOptionsBuilder::new().filters(&filters).build();
    let services = docker.list_services(Some(options)).await.map_err(ProbeError::ListServices)?;
    let ids: Vec<_> = services.into_iter().filter_map(|service| service.id).collect();
    if ids.is_empty() {
        return Err(ProbeError::NoClients);
    }
    let mut tally = Tally::default();
    for id in ids {
        read(docker, &id, &mut tally).await?;
    }
    Ok(tally.report(steps))
}

async fn read(docker: &Docker, service: &str, tally: &mut Tally) -> Result<(), ProbeError> {
    let options = LogsOptionsBuilder::new().stdout(true).stderr(true).build();
    let mut logs = std::pin::pin!(docker.service_logs(service, Some(options)));
    let mut any = false;
    loop {
        match tokio::time::timeout(LOG_SILENCE, logs.next()).await {
            Ok(None) => return Ok(()),
            Ok(Some(Ok(output))) => {
                any = true;
                String::from_utf8_lossy(output.as_ref()).lines().for_each(|line| tally.line(line));
            }
            Ok(Some(Err(source))) if !any => {
                return Err(ProbeError::ReadLogs { service: service.to_owned(), source });
            }
            // The logs of the nodes that answered are worth showing all the same.
            Ok(Some(Err(error))) => {
                tally.remark(&format!("the logs broke off: {error}"));
                return Ok(());
            }
            Err(_) => {
                let seconds = LOG_SILENCE.as_secs();
                tally.remark(&format!("the logs may be incomplete: nothing more within {seconds} s"));
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::path::Path;

    use bollard::API_DEFAULT_VERSION;
    use bytes::Bytes;
    use http_body_util::Full;
    use hyper::body::Incoming;
    use hyper::{Request, Response, StatusCode, server::conn::http1, service::service_fn};
    use hyper_util::rt::TokioIo;
    use tokio::net::UnixListener;

    use super::*;

    /// A message as engines frame it: the stream's number, three zeros, the length, the text.
    fn frame(stream: u8, text: &str) -> Vec<u8> {
        let length = u32::try_from(text.len()).unwrap();
        [&[stream, 0, 0, 0], length.to_be_bytes().as_slice(), text.as_bytes()].concat()
    }

    fn answer(request: &Request<Incoming>, services: &'static str) -> (StatusCode, Vec<u8>) {
        let line = |requests: u64| {
            format!(
                r#"{{"event":"summary","client":"c","time":"2026-01-01T00:00:0{requests}Z","since":"2026-01-01T00:00:00Z","requests_total":{requests},"failed_total":0,"before_first_answer":0,"last":false}}{}"#,
                "\n"
            )
        };
        let query = request.uri().query().unwrap_or_default();
        // With or without the version in front.
        match request.uri().path().rsplit_once("services").map(|(_, rest)| rest) {
            Some("") => {
                assert!(query.contains("io.requeen.probe%3Dclient"), "{query}");
                (StatusCode::OK, services.into())
            }
            Some("/abc/logs") => {
                assert!(query.contains("stdout=true") && query.contains("follow=false"), "{query}");
                let remark = "Error grabbing logs: node w1 is not available\n";
                let logs = [frame(1, &line(1)), frame(1, &line(2)), frame(2, remark)].concat();
                (StatusCode::OK, logs)
            }
            Some(_) | None => (StatusCode::NOT_FOUND, br#"{"message":"not found"}"#.into()),
        }
    }

    /// Collects from an engine that lists `services`.
    async fn collect_from(folder: &Path, services: &'static str) -> Result<ProbeReport, ProbeError> {
        let socket = folder.join("docker.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let engine = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let service = service_fn(move |request: Request<Incoming>| async move {
                    let (status, body) = answer(&request, services);
                    let mut response = Response::new(Full::new(Bytes::from(body)));
                    *response.status_mut() = status;
                    Ok::<_, Infallible>(response)
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        let path = socket.to_str().unwrap();
        let docker = Docker::connect_with_unix(path, 10, API_DEFAULT_VERSION).unwrap();
        let report = collect(&docker, &[]).await;
        engine.abort();
        report
    }

    #[tokio::test]
    async fn the_logs_of_the_clients_are_read_and_remarks_noted() {
        let folder = tempfile::tempdir().unwrap();
        let report = collect_from(folder.path(), r#"[{"ID":"abc"}]"#).await.unwrap();
        assert_eq!((report.requests_total, report.failed_total), (2, 0));
        assert_eq!(report.notes, ["not from a client: Error grabbing logs: node w1 is not available"]);
    }

    #[tokio::test]
    async fn no_service_and_no_logs_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let error = collect_from(folder.path(), "[]").await.unwrap_err();
        assert!(matches!(error, ProbeError::NoClients), "{error:?}");
        let folder = tempfile::tempdir().unwrap();
        let error = collect_from(folder.path(), r#"[{"ID":"gone"}]"#).await.unwrap_err();
        assert!(matches!(&error, ProbeError::ReadLogs { service, .. } if service == "gone"), "{error:?}");
    }
}
