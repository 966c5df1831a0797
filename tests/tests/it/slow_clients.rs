//! Clients that are slow, silent, or gone, and too many of them (classes 12, 13, and the silent ones of 21).

use std::net::TcpStream;
use std::time::Duration;

use ekm_tests::{Connection, Ekm, FaultProxy, Mode, base64};
use serde_json::json;

use crate::table::{PATIENCE, PLAINTEXT, Table, WRAP, assert_serves, good_body, good_headers, post_json, serve_with};

/// `body` announced, but only `sent` bytes of it sent.
fn partial(token: &str, announced: u64, sent: &str) -> Vec<u8> {
    let headers = good_headers(token);
    format!("POST {WRAP} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {announced}\r\n\r\n{sent}")
        .into_bytes()
}

fn open_connections(ekm: &Ekm) -> f64 {
    ekm.metric("ekm_connections{listener=\"ekm\"}")
}

fn closed_for(ekm: &Ekm, reason: &str) -> f64 {
    ekm.metric(&format!("ekm_connections_closed_total{{listener=\"ekm\",reason=\"{reason}\"}}"))
}

/// Sends bytes one by one until the server closes or they are all sent.
fn trickle(connection: &mut Connection, bytes: &[u8]) -> bool {
    bytes.chunks(1).any(|byte| {
        let failed = connection.send(byte).is_err();
        failed || connection.is_closed_within(Duration::from_millis(20))
    })
}

#[test]
fn who_says_nothing_or_says_it_too_slowly_is_cut_off() {
    let ekm = serve_with("first_byte_timeout_ms = 1000\nheader_timeout_ms = 1000\nidle_timeout_s = 1");
    let token = ekm.ready.token.clone();
    let head = format!("POST {WRAP} HTTP/1.1\r\nHost: localhost\r\n{}", "A: b\r\n".repeat(50));

    let mut silent = ekm.connect();
    assert!(silent.is_closed_within(PATIENCE), "silent after the handshake");
    ekm.eventually("counted", || closed_for(&ekm, "first_byte_timeout") == 1.0);

    let mut half_a_head = ekm.connect();
    half_a_head.send(head.as_bytes()).unwrap();
    assert!(half_a_head.is_closed_within(PATIENCE), "half a head");
    assert!(trickle(&mut ekm.connect(), head.as_bytes()), "a head byte by byte");
    ekm.eventually("counted", || closed_for(&ekm, "header_timeout") == 2.0);

    let mut idle = ekm.connect();
    assert_serves(&mut idle, &token);
    assert!(idle.is_closed_within(PATIENCE), "idle after an answer");
    ekm.eventually("counted", || closed_for(&ekm, "idle_timeout") == 1.0);

    // Clocks start anew: a second head that does not come to its end, after a good request.
    let mut second_head = ekm.connect();
    assert_serves(&mut second_head, &token);
    assert!(trickle(&mut second_head, head.as_bytes()), "a second head byte by byte");
    ekm.eventually("counted", || closed_for(&ekm, "header_timeout") == 3.0);

    // Nobody of them was a request.
    ekm.eventually("audited", || ekm.audit().len() == 2);
    assert_serves(&mut ekm.connect(), &token);
}

#[test]
fn a_body_that_does_not_arrive_is_answered_and_the_connection_closed() {
    let mut table = Table::over(serve_with("body_timeout_ms = 400"));
    let token = table.ekm.ready.token.clone();
    let late = crate::table::Expect::Refused(400, "body: did not arrive within 400 ms");
    table.row(12, "no byte of the body", partial(&token, 100, ""), late);
    table.row(12, "half a body", partial(&token, 1000, &good_body()), late);
    let too_long = crate::table::Expect::Refused(400, "body: is longer than 262144 bytes");
    table.row(3, "Content-Length of 2^63", partial(&token, 1 << 63, &good_body()), too_long);
    let chunked = |chunks: &str| {
        let headers = good_headers(&token);
        let head = format!("POST {WRAP} HTTP/1.1\r\nHost: localhost\r\n{headers}Transfer-Encoding: chunked\r\n\r\n");
        [head.as_bytes(), chunks.as_bytes()].concat()
    };
    table.row(5, "chunk size of 2^64 - 1", chunked("ffffffffffffffff\r\n{}\r\n0\r\n\r\n"), late);
    table.row(5, "no last chunk", chunked("2\r\n{}\r\n"), late);
    table.row(5, "no end after the last chunk", chunked("2\r\n{}\r\n0\r\n"), late);

    let mut slow = table.ekm.connect();
    slow.send(&partial(&token, 1000, "")).unwrap();
    assert!(!trickle(&mut slow, &[b' '; 500]) || slow.read_answer().is_ok(), "a slow body has no answer");
    table.finish(&[]);
}

#[test]
fn a_connection_that_has_rested_goes_on_where_it_was() {
    let ekm = serve_with("header_timeout_ms = 300000");
    let token = &ekm.ready.token;
    let whole = post_json(WRAP, token, good_body());
    let mut connections = [ekm.connect(), ekm.connect()];
    for connection in &mut connections {
        assert_serves(connection, token);
    }
    // Longer than any connection keeps its buffers; the second one has read half of a head together with a request.
    let (first_half, second_half) = whole.split_at(40);
    connections[1].send(&[&whole, first_half].concat()).unwrap();
    assert_eq!(connections[1].read_answer().unwrap().status, 200);
    std::thread::sleep(Duration::from_millis(1500));
    assert_serves(&mut connections[0], token);
    connections[1].send(second_half).unwrap();
    assert_eq!(connections[1].read_answer().unwrap().status, 200);
    assert_serves(&mut connections[1], token);
}

#[test]
fn half_a_head_that_came_with_the_request_before_it_is_cut_off_like_any() {
    let ekm = serve_with("header_timeout_ms = 1000\nidle_timeout_s = 300");
    let whole = post_json(WRAP, &ekm.ready.token, good_body());
    let mut connection = ekm.connect();
    connection.send(&[&whole, &whole[..40]].concat()).unwrap();
    assert_eq!(connection.read_answer().unwrap().status, 200);
    assert!(connection.is_closed_within(PATIENCE), "half a head is no idle connection");
    ekm.eventually("counted", || closed_for(&ekm, "header_timeout") == 1.0);
}

#[test]
fn who_does_not_read_his_answers_is_cut_off() {
    let ekm = serve_with("write_timeout_ms = 500\nidle_timeout_s = 75");
    let mut deaf = ekm.connect();
    let body = json!({"plaintext": base64(vec![7; 64 * 1024])}).to_string();
    let request = post_json(WRAP, &ekm.ready.token, &body);
    // The kernel's buffers take some megabytes before anything blocks.
    let sent = (0..1000).take_while(|_| deaf.send(&request).is_ok()).count();
    assert!(sent < 1000, "the server went on and on");
    ekm.eventually("cut off", || closed_for(&ekm, "write_timeout") == 1.0);
    assert_serves(&mut ekm.connect(), &ekm.ready.token);
}

#[test]
fn one_connection_too_many_closes_the_one_that_has_been_idle_longest() {
    let ekm = serve_with("max_connections = 5");
    let token = &ekm.ready.token;
    // Each is fully open before the next one, so that their order is known.
    let mut connections: Vec<_> = (0..20)
        .map(|_| {
            let mut connection = ekm.connect();
            assert_serves(&mut connection, token);
            connection
        })
        .collect();
    for (number, connection) in connections.iter_mut().enumerate().take(15) {
        assert!(connection.is_closed_within(PATIENCE), "connection {number} is still open");
    }
    ekm.eventually("counted", || closed_for(&ekm, "evicted") == 15.0);
    for connection in &mut connections[15..] {
        assert_serves(connection, token);
    }
    ekm.eventually("bounded", || open_connections(&ekm) == 5.0);
}

/// Open, and answered once without a token.
fn stranger(ekm: &Ekm) -> Connection {
    let mut connection = ekm.connect();
    connection.send(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    assert_eq!(connection.read_answer().unwrap().status, 200);
    connection
}

#[test]
fn one_stranger_too_many_closes_the_stranger_that_has_been_idle_longest_and_nobody_who_is_known() {
    let ekm = serve_with("max_connections = 20\nmax_unauthenticated_connections = 3");
    let token = &ekm.ready.token;
    let mut known: Vec<_> = (0..8).map(|_| ekm.connect()).collect();
    known.iter_mut().for_each(|connection| assert_serves(connection, token));
    let mut strangers: Vec<_> = (0..12).map(|_| stranger(&ekm)).collect();
    for (number, connection) in strangers.iter_mut().enumerate().take(9) {
        assert!(connection.is_closed_within(PATIENCE), "stranger {number} is still open");
    }
    ekm.eventually("counted", || closed_for(&ekm, "evicted_unauthenticated") == 9.0);
    // Even a bad token is answered, and makes nobody known.
    let refused = post_json(WRAP, "a.b.c", good_body());
    strangers[9].send(&refused).unwrap();
    assert_eq!(strangers[9].read_answer().unwrap().status, 401);
    drop(stranger(&ekm));
    assert!(strangers[10].is_closed_within(PATIENCE), "it was idle longest");
    assert_serves(&mut strangers[9], token);
    known.iter_mut().for_each(|connection| assert_serves(connection, token));
    assert_eq!(closed_for(&ekm, "evicted"), 0.0);
}

#[test]
fn newcomers_are_served_even_if_all_at_once_are_more_than_strangers_may_be() {
    let ekm = serve_with("max_unauthenticated_connections = 2\nfirst_byte_timeout_ms = 300000");
    let mut newcomers: Vec<_> = (0..50).map(|_| ekm.connect()).collect();
    newcomers.iter_mut().for_each(|connection| assert_serves(connection, &ekm.ready.token));
    let silent: Vec<_> = (0..50).map(|_| TcpStream::connect(ekm.address()).unwrap()).collect();
    ekm.eventually("accepted", || open_connections(&ekm) == 100.0);
    newcomers.iter_mut().for_each(|connection| assert_serves(connection, &ekm.ready.token));
    assert_eq!(closed_for(&ekm, "evicted_unauthenticated"), 0.0);
    drop(silent);
}

#[test]
fn strangers_that_take_all_the_room_there_is_push_out_only_strangers() {
    let limits = "max_connections = 5\nmax_unauthenticated_connections = 3\nfirst_byte_timeout_ms = 300000";
    let ekm = serve_with(&format!("{limits}\nhandshake_timeout_ms = 300000"));
    let mut known = [ekm.connect(), ekm.connect()];
    known.iter_mut().for_each(|connection| assert_serves(connection, &ekm.ready.token));
    let silent: Vec<_> = (0..50).map(|_| TcpStream::connect(ekm.address()).unwrap()).collect();
    ekm.eventually("accepted", || closed_for(&ekm, "evicted") == 47.0);
    known.iter_mut().for_each(|connection| assert_serves(connection, &ekm.ready.token));
    drop(silent);
}

#[test]
fn newcomers_do_not_push_out_each_other_where_known_connections_have_all_the_room() {
    let limits = "max_connections = 5\nmax_unauthenticated_connections = 3\nfirst_byte_timeout_ms = 300000";
    let ekm = serve_with(limits);
    let token = &ekm.ready.token;
    let mut known: Vec<_> = (0..5)
        .map(|_| {
            let mut connection = ekm.connect();
            assert_serves(&mut connection, token);
            connection
        })
        .collect();
    let mut newcomers: Vec<_> = (0..3).map(|_| ekm.connect()).collect();
    newcomers.iter_mut().for_each(|connection| assert_serves(connection, token));
    for (number, connection) in known.iter_mut().enumerate().take(3) {
        assert!(connection.is_closed_within(PATIENCE), "connection {number} is still open");
    }
    known[3..].iter_mut().for_each(|connection| assert_serves(connection, token));
    assert_eq!(closed_for(&ekm, "evicted"), 3.0);
}

#[test]
fn a_connection_with_a_request_under_way_is_never_closed_for_another() {
    let ekm = serve_with("max_connections = 5\nbody_timeout_ms = 15000");
    let token = &ekm.ready.token;
    let body = good_body();
    let (first_half, second_half) = body.split_at(10);
    let mut busy: Vec<_> = (0..5).map(|_| ekm.connect()).collect();
    for connection in &mut busy {
        connection.send(&partial(token, body.len() as u64, first_half)).unwrap();
    }
    // Until all five are under way, a new connection may still push one of them out; the server tells how far it is.
    ekm.eventually("all under way", || {
        let misses = ekm.metric("ekm_token_cache_total{result=\"miss\"}");
        misses + ekm.metric("ekm_token_cache_total{result=\"hit\"}") >= 5.0
    });
    assert!(Connection::open(ekm.address(), &ekm.ready.ca_file).is_err(), "a sixth connection got in");
    ekm.eventually("counted", || closed_for(&ekm, "refused") == 1.0);
    for connection in &mut busy {
        connection.send(second_half.as_bytes()).unwrap();
        assert_eq!(connection.read_answer().unwrap().status, 200);
    }
    assert_serves(&mut ekm.connect(), token);
}

#[test]
fn a_client_that_leaves_in_the_middle_of_a_request_harms_nobody() {
    let ekm = Ekm::dev(&[]);
    let token = &ekm.ready.token;
    let whole = post_json(WRAP, token, good_body());
    for cut in [1, 20, whole.len() / 2, whole.len() - 1] {
        let mut connection = ekm.connect();
        connection.send(&whole[..cut]).unwrap();
    }
    // Gone right after the request, before the answer.
    for _ in 0..20 {
        ekm.connect().send(&whole).unwrap();
    }
    // Gone in the middle of the handshake.
    for _ in 0..20 {
        drop(TcpStream::connect(ekm.address()).unwrap());
    }
    ekm.eventually("over", || open_connections(&ekm) == 0.0);
    for line in ekm.audit() {
        let known = ["abandoned", "ok", "invalid_request"].contains(&line["code"].as_str().unwrap());
        assert!(known, "{line}");
        assert_eq!(line["status"].is_null(), line["code"] == "abandoned", "{line}");
    }
    assert_serves(&mut ekm.connect(), token);
    assert!(!ekm.log().contains("panic"), "{}", ekm.log());
    ekm.assert_not_leaked(&[token, PLAINTEXT, &base64(PLAINTEXT)]);
}

#[test]
fn silent_peers_that_never_begin_a_handshake_do_not_keep_others_out() {
    let ekm = serve_with("max_connections = 5\nhandshake_timeout_ms = 300000");
    let silent: Vec<_> = (0..50).map(|_| TcpStream::connect(ekm.address()).unwrap()).collect();
    ekm.eventually("accepted", || closed_for(&ekm, "evicted") == 45.0);
    ekm.eventually("bounded", || open_connections(&ekm) == 5.0);
    assert_serves(&mut ekm.connect(), &ekm.ready.token);
    drop(silent);
}

#[test]
fn a_network_that_delays_stalls_or_cuts_costs_only_what_is_on_it() {
    let ekm = Ekm::dev(&[]);
    let proxy = FaultProxy::to(ekm.address());
    let connect = || Connection::open(proxy.address(), &ekm.ready.ca_file);
    let mut far = connect().unwrap();
    for mode in [Mode::Forward, Mode::Delay(Duration::from_millis(50))] {
        proxy.set(mode);
        assert_serves(&mut far, &ekm.ready.token);
    }
    proxy.set(Mode::Stall);
    far.send(&post_json(WRAP, &ekm.ready.token, good_body())).unwrap();
    assert!(!far.is_closed_within(Duration::from_millis(300)), "nothing comes through");
    assert_serves(&mut ekm.connect(), &ekm.ready.token);
    proxy.set(Mode::Forward);
    assert_eq!(far.read_answer().unwrap().status, 200, "late for the caller, and still right");
    proxy.set(Mode::Cut);
    assert!(far.is_closed_within(PATIENCE));
    assert!(connect().is_err());
    assert_serves(&mut ekm.connect(), &ekm.ready.token);
}
