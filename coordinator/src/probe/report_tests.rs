use super::*;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

fn span(node: &str, step: &str, from: i64, to: Option<i64>) -> StepSpan {
    StepSpan { node: node.into(), step: step.into(), from: at(from), to: to.map(at) }
}

fn failure(client: &str, seconds: i64, took_ms: u64) -> Line {
    Line::Failure(Failure {
        client: client.into(),
        time: at(seconds),
        target: Some([10, 0, 1, 5].into()),
        error: "connecting: refused".into(),
        took_ms,
    })
}

fn summary(client: &str, seconds: i64, requests: u64, failed: u64) -> Summary {
    Summary {
        client: client.into(),
        time: at(seconds),
        since: at(0),
        requests_total: requests,
        failed_total: failed,
        before_first_answer: 0,
        waiting: None,
        last: false,
    }
}

fn report(lines: &[Line], steps: &[StepSpan]) -> ProbeReport {
    let mut tally = Tally::default();
    for line in lines {
        tally.line(&format!("{}\n", serde_json::to_string(line).unwrap()));
    }
    tally.report(steps)
}

#[test]
fn the_last_summary_of_every_client_counts_in_any_order() {
    let lines = [
        Line::Summary(summary("b", 3, 30, 0)),
        Line::Summary(Summary { last: true, ..summary("a", 9, 90, 0) }),
        Line::Summary(summary("b", 2, 20, 0)),
        Line::Summary(summary("a", 8, 80, 0)),
    ];
    let report = report(&lines, &[]);
    assert_eq!((report.requests_total, report.failed_total), (120, 0));
    let clients: Vec<_> = report.clients.iter().map(|c| (c.client.as_str(), c.requests, c.ended)).collect();
    assert_eq!(clients, [("a", 90, true), ("b", 30, false)]);
    assert_eq!(report.notes, [""; 0]);
}

#[test]
fn failures_after_the_last_summary_count_and_lost_ones_are_named() {
    let lines = [
        Line::Summary(summary("killed", 5, 50, 1)),
        failure("killed", 4, 1),
        failure("killed", 6, 1),
        failure("killed", 7, 1),
        Line::Summary(summary("rotated", 5, 50, 2)),
        failure("rotated", 5, 1),
        failure("mute", 5, 1),
    ];
    let report = report(&lines, &[]);
    let counts: Vec<_> = report.clients.iter().map(|c| (c.client.as_str(), c.requests, c.failed)).collect();
    assert_eq!(counts, [("killed", 52, 3), ("mute", 1, 1), ("rotated", 50, 2)]);
    assert_eq!(report.clients[0].until, at(7));
    assert_eq!(report.failed_total, 6);
    assert_eq!(
        report.notes,
        [
            "mute: its summaries are not in the logs, only failures are counted",
            "rotated: 1 of its failures are no longer in the logs",
        ]
    );
}

#[test]
fn failures_are_placed_by_their_whole_time() {
    let steps = [
        span("m1", "drain", 0, Some(10)),
        span("m1", "swap", 10, Some(20)),
        span("w1", "drain", 15, Some(30)),
        span("w2", "drain", 40, None),
    ];
    let during = |seconds, took_ms| {
        let report = report(&[failure("c", seconds, took_ms)], &steps);
        words(&report.failures[0].during)
    };
    assert_eq!(during(5, 10), "m1 drain");
    assert_eq!(during(16, 10), "m1 swap + w1 drain");
    // Sent in one step, given up in the next.
    assert_eq!(during(9, 2_000), "m1 drain + m1 swap");
    assert_eq!(during(31, 10), "no step");
    assert_eq!(during(38, 1_999), "no step");
    assert_eq!(during(38, 2_000), "w2 drain");
    assert_eq!(during(4_000, u64::MAX), "w2 drain");
}

#[test]
fn what_engines_remark_and_clients_never_reach_is_noted() {
    let mut tally = Tally::default();
    tally.line("");
    tally.line("incomplete log stream: node w1 is not available\n");
    tally.line("incomplete log stream: node w1 is not available\n");
    let alone = Summary {
        before_first_answer: 7,
        waiting: Some("probe-server has no address".into()),
        ..summary("c", 1, 0, 0)
    };
    tally.line(&serde_json::to_string(&Line::Summary(alone)).unwrap());
    let report = tally.report(&[]);
    assert_eq!((report.requests_total, report.failed_total), (0, 0));
    assert_eq!(
        report.notes,
        [
            "c: never got an answer, 7 requests failed (probe-server has no address)",
            "not from a client: incomplete log stream: node w1 is not available",
        ]
    );
    assert_eq!(Tally::default().report(&[]).notes, ["the logs hold no line of any client"]);
}

#[test]
fn the_text_says_it_all() {
    let steps = [span("m1", "swap", 10, Some(20))];
    let lines = [
        Line::Summary(Summary { last: true, ..summary("probe_client.1", 30, 100, 1) }),
        failure("probe_client.1", 12, 3),
        Line::Summary(summary("c2", 20, 7, 0)),
    ];
    insta::assert_snapshot!(render_text(&report(&lines, &steps)), @r"
    1 of 107 requests failed

    client          requests  failed  early  from … to
    c2                     7       0      0  2027-01-15T08:00:00Z … 2027-01-15T08:00:20Z (last word)
    probe_client.1       100       1      0  2027-01-15T08:00:00Z … 2027-01-15T08:00:30Z

    failures by the steps under way
         1  m1 swap

    failures
    2027-01-15T08:00:12.000Z  10.0.1.5  connecting: refused (3 ms), during m1 swap
    ");
    let quiet = report(&[Line::Summary(summary("c2", 20, 7, 0))], &[]);
    insta::assert_snapshot!(render_text(&quiet), @r"
    0 of 7 requests failed

    client  requests  failed  early  from … to
    c2             7       0      0  2027-01-15T08:00:00Z … 2027-01-15T08:00:20Z (last word)
    ");
}

#[test]
fn the_text_shows_a_bounded_number_of_failures_and_json_all() {
    let lines: Vec<_> = (0..45).map(|second| failure("c", second, 1)).collect();
    let report = report(&lines, &[]);
    let text = render_text(&report);
    assert!(text.contains("… and 5 more; --json has all"), "{text}");
    assert_eq!(text.matches("10.0.1.5").count(), SHOWN);
    let json: ProbeReport = serde_json::from_str(&render_json(&report).unwrap()).unwrap();
    assert_eq!(json, report);
    assert_eq!(json.failures.len(), 45);
}
