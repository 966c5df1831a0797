//! Bad handshakes (classes 19 to 21), as raw bytes over TCP.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use ekm_tests::{Connection, Ekm, tls_config};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, SupportedProtocolVersion};

use crate::table::{PATIENCE, WRAP, assert_serves, good_body, is_closed, post_json, serve_with};

/// What has to come back on a connection that carries these bytes and nothing else.
#[derive(Clone, Copy)]
enum Reply {
    /// An alert with this description, then the end.
    Alert(u8),
    /// Any alert or none, then the end.
    End,
    /// A ServerHello.
    Hello,
}

const HANDSHAKE_FAILURE: u8 = 40;
const ILLEGAL_PARAMETER: u8 = 47;
const PROTOCOL_VERSION: u8 = 70;

fn row(ekm: &mut Ekm, class: u8, name: &str, bytes: &[u8], expected: Reply) {
    let name = format!("class {class}, {name}");
    let mut stream = TcpStream::connect(ekm.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    // The server may close before it has taken everything.
    let _ = stream.write_all(bytes);
    let mut head = [0; 7];
    let reply = stream.read_exact(&mut head).map(|()| head);
    match (expected, &reply) {
        (Reply::Hello, Ok([22, 3, 3, _, _, 2, _])) => {}
        (Reply::Alert(description), Ok([21, 3, _, 0, 2, 2, got])) => assert_eq!(*got, description, "{name}"),
        (Reply::End, Ok([21, ..])) => {}
        (Reply::End, Err(error)) => assert!(is_closed(error), "{name}: {error}"),
        (_, reply) => panic!("{name}: {reply:x?}"),
    }
    if !matches!(expected, Reply::Hello) {
        let mut rest = Vec::new();
        let ended = stream.read_to_end(&mut rest);
        assert!(ended.as_ref().map_or_else(is_closed, |_| rest.len() < 100), "{name}: {ended:?} after {reply:x?}");
    }
    assert!(ekm.is_running(), "{name} ended the service:\n{}", ekm.log());
}

fn record(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    [&[kind, 3, 1], &length[..], payload].concat()
}

/// A handshake message: kind, length in 3 bytes, body.
fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[kind], &length[1..], body].concat()
}

/// The body of an old-style ClientHello with these cipher suites.
fn hello_body(version: [u8; 2], suites: &[u16], extensions: &[u8]) -> Vec<u8> {
    let suites: Vec<u8> = suites.iter().flat_map(|suite| suite.to_be_bytes()).collect();
    let suites_length = u16::try_from(suites.len()).unwrap().to_be_bytes();
    let extensions_length = u16::try_from(extensions.len()).unwrap().to_be_bytes();
    [&version[..], &[7; 32], &[0], &suites_length, &suites, &[1, 0], &extensions_length, extensions].concat()
}

fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap().to_be_bytes();
    [&kind.to_be_bytes(), &length[..], body].concat()
}

/// A real ClientHello: the handshake message without its record header.
fn real_hello(ekm: &Ekm, server_name: &str, versions: &[&'static SupportedProtocolVersion]) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = tls_config(&ekm.ready.ca_file, &["http/1.1"]).alpn_protocols;
    let name = ServerName::try_from(server_name.to_owned()).unwrap();
    let mut bytes = Vec::new();
    ClientConnection::new(Arc::new(config), name).unwrap().write_tls(&mut bytes).unwrap();
    assert_eq!(usize::from(u16::from_be_bytes([bytes[3], bytes[4]])) + 5, bytes.len(), "one record");
    bytes.split_off(5)
}

const BOTH: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];

#[test]
fn a_bad_client_hello_is_refused_with_an_alert() {
    let mut ekm = Ekm::dev(&[]);
    let ekm = &mut ekm;
    let modern = [0x1301, 0xc02b, 0xc02f];
    let groups = extension(10, &[0, 2, 0, 29]);
    let signatures = extension(13, &[0, 4, 4, 3, 8, 4]);
    let usual = [&groups[..], &signatures].concat();
    let hello = |version, suites: &[u16], extensions: &[u8]| message(1, &hello_body(version, suites, extensions));

    row(ekm, 19, "SSL 3.0", &record(22, &hello([3, 0], &modern, &usual)), Reply::Alert(PROTOCOL_VERSION));
    row(ekm, 19, "TLS 1.0", &record(22, &hello([3, 1], &modern, &usual)), Reply::Alert(PROTOCOL_VERSION));
    row(ekm, 19, "TLS 1.1", &record(22, &hello([3, 2], &modern, &usual)), Reply::Alert(PROTOCOL_VERSION));
    let only_11 = [&usual[..], &extension(43, &[2, 3, 2])].concat();
    let only_11 = record(22, &hello([3, 3], &modern, &only_11));
    row(ekm, 19, "TLS 1.1 in supported_versions", &only_11, Reply::Alert(PROTOCOL_VERSION));
    let weak = [0x000a, 0x002f, 0x0005, 0xc013];
    let weak = record(22, &hello([3, 3], &weak, &usual));
    row(ekm, 19, "only RC4, 3DES, CBC", &weak, Reply::Alert(HANDSHAKE_FAILURE));
    row(ekm, 19, "no cipher suite", &record(22, &hello([3, 3], &[], &usual)), Reply::End);
    row(ekm, 19, "no extension", &record(22, &hello([3, 3], &modern, &[])), Reply::End);
    let strange = [&extension(10, &[0, 2, 0xfe, 0xfe])[..], &signatures].concat();
    let strange = record(22, &hello([3, 3], &modern, &strange));
    row(ekm, 19, "no common group", &strange, Reply::Alert(HANDSHAKE_FAILURE));
    let good = record(22, &hello([3, 3], &modern, &usual));
    row(ekm, 19, "TLS 1.2 without SNI, the yardstick", &good, Reply::Hello);

    // The name chooses nothing: there is one certificate, and the caller checks it; Host decides what is served.
    let other = real_hello(ekm, "evil.example", BOTH);
    row(ekm, 19, "SNI of another host", &record(22, &other), Reply::Hello);
    let with_name = |name: &[u8]| {
        let length = |of: usize| u16::try_from(of).unwrap().to_be_bytes();
        let body = [&length(name.len() + 3)[..], &[0], &length(name.len()), name].concat();
        record(22, &hello([3, 3], &modern, &[&usual[..], &extension(0, &body)].concat()))
    };
    row(ekm, 19, "SNI with NUL", &with_name(b"local\0host"), Reply::End);
    row(ekm, 19, "SNI that is empty", &with_name(b""), Reply::End);
    row(ekm, 19, "SNI of 10 KiB", &with_name(&[b'a'; 10 << 10]), Reply::End);
    // RFC 6066 forbids addresses there; some clients send them all the same, and rustls passes over them.
    row(ekm, 19, "SNI that is an address", &with_name(b"127.0.0.1"), Reply::Hello);
    let twice = [&usual[..], &groups].concat();
    row(ekm, 19, "an extension twice", &record(22, &hello([3, 3], &modern, &twice)), Reply::Alert(ILLEGAL_PARAMETER));

    for versions in [BOTH, &[&rustls::version::TLS12]] {
        let hello = real_hello(ekm, "localhost", versions);
        row(ekm, 20, "a whole ClientHello, the yardstick", &record(22, &hello), Reply::Hello);
        let pieces: Vec<u8> = hello.chunks(100).flat_map(|piece| record(22, piece)).collect();
        row(ekm, 20, "ClientHello in records of 100 bytes", &pieces, Reply::Hello);
        for at in (0..hello.len()).step_by(7) {
            let mut garbled = hello.clone();
            garbled[at] ^= 0xff;
            let mut stream = TcpStream::connect(ekm.address()).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(&record(22, &garbled)).unwrap();
            // Some bytes mean nothing here, and a greater length asks for more bytes: that it ends is all they share.
            stream.shutdown(Shutdown::Write).unwrap();
            let ended = stream.read_to_end(&mut Vec::new());
            assert!(ended.as_ref().map_or_else(is_closed, |_| true), "byte {at}: {ended:?}");
            assert!(ekm.is_running(), "byte {at}");
        }
    }
    let single: Vec<u8> = real_hello(ekm, "localhost", BOTH).chunks(1).flat_map(|byte| record(22, byte)).collect();
    row(ekm, 20, "ClientHello in records of 1 byte", &single, Reply::Hello);

    let padded = |bytes: usize| [&usual[..], &extension(21, &vec![0; bytes])].concat();
    let long = hello([3, 3], &modern, &padded(60_000));
    let records: Vec<u8> = long.chunks(16 << 10).flat_map(|piece| record(22, piece)).collect();
    row(ekm, 20, "ClientHello of nearly 64 KiB", &records, Reply::Hello);
    let mut too_long = message(1, &vec![0; 70_000]);
    too_long.extend(vec![0; 1000]);
    let records: Vec<u8> = too_long.chunks(16 << 10).flat_map(|piece| record(22, piece)).collect();
    row(ekm, 20, "ClientHello above 64 KiB", &records, Reply::End);
    row(ekm, 20, "a record of 40 KiB", &record(22, &vec![1; 40_000]), Reply::End);
    row(ekm, 20, "100 000 empty records", &record(22, &[]).repeat(100_000), Reply::End);
    row(ekm, 20, "an unknown kind of record", &record(99, b"x"), Reply::End);
    row(ekm, 20, "application data first", &record(23, b"POST / HTTP/1.1\r\n\r\n"), Reply::End);
    row(ekm, 20, "a Finished first", &record(22, &message(20, &[0; 12])), Reply::End);
    row(ekm, 20, "a ServerHello first", &record(22, &message(2, &hello_body([3, 3], &[0x1301], &[]))), Reply::End);
    row(ekm, 20, "a ClientHello twice", &[&good[..], &good].concat(), Reply::Hello);
    row(ekm, 20, "SSL 2.0", &[0x80, 0x2e, 1, 3, 1, 0, 0x15, 0, 0, 0, 0x10, 1, 0, 0x80, 3, 0, 0x80], Reply::End);
    row(ekm, 20, "random bytes", &[0xa5; 4096], Reply::End);
    row(ekm, 20, "zeros", &[0; 100_000], Reply::End);
    row(ekm, 20, "plain HTTP", &post_json(WRAP, &ekm.ready.token.clone(), good_body()), Reply::End);
    row(ekm, 20, "a PROXY header", b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n", Reply::End);

    assert_serves(&mut ekm.connect(), &ekm.ready.token);
    assert!(!ekm.log().contains("panic"), "{}", ekm.log());
    // The one good request, and no broken handshake.
    ekm.eventually("audited", || ekm.audit().len() == 1);
    ekm.assert_not_leaked(&[&ekm.ready.token]);
}

#[test]
fn tls_on_the_plain_port_is_answered_as_bad_http() {
    let ekm = Ekm::dev(&[]);
    let address = ekm.ready.ops_url.strip_prefix("http://").unwrap().parse().unwrap();
    let mut connection = Connection::open_plain(address).unwrap();
    connection.send(&record(22, &real_hello(&ekm, "localhost", BOTH))).unwrap();
    let answer = connection.read_answer().unwrap();
    assert_eq!(answer.status, 400, "{answer:?}");
    assert!(connection.is_closed_within(PATIENCE));
    assert!(Connection::open(address, &ekm.ready.ca_file).is_err(), "TLS on the plain port");
    assert_serves(&mut ekm.connect(), &ekm.ready.token);
}

#[test]
fn a_handshake_that_does_not_go_on_is_cut_off() {
    let ekm = serve_with("handshake_timeout_ms = 400");
    let hello = record(22, &real_hello(&ekm, "localhost", BOTH));
    let begin = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(ekm.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(bytes).unwrap();
        stream
    };
    let mut stalled = [begin(&[]), begin(&hello[..1]), begin(&hello[..hello.len() - 1]), begin(&hello)];
    for stream in &mut stalled {
        let ended = stream.read_to_end(&mut Vec::new());
        assert!(ended.as_ref().map_or_else(is_closed, |_| true), "{ended:?}");
    }
    // One that always has a byte more.
    let mut slow = begin(&[]);
    slow.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let cut = hello.iter().any(|byte| {
        let waiting = |error: &std::io::Error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
        slow.write_all(&[*byte]).is_err() || !matches!(slow.read(&mut [0; 100]), Err(error) if waiting(&error))
    });
    assert!(cut, "a handshake may take for ever");
    let timeouts = "ekm_connections_closed_total{listener=\"ekm\",reason=\"handshake_timeout\"}";
    ekm.eventually("counted", || ekm.metric(timeouts) == 5.0);
    assert_serves(&mut ekm.connect(), &ekm.ready.token);
}

#[test]
fn there_is_no_resumption_and_so_no_early_data() {
    let ekm = Ekm::dev(&[]);
    let mut config = tls_config(&ekm.ready.ca_file, &["http/1.1"]);
    config.enable_early_data = true;
    for _ in 0..3 {
        // The settings, and with them the client's memory of sessions, are shared by the three connections.
        let mut connection = Connection::open_with(ekm.address(), config.clone()).unwrap();
        assert_serves(&mut connection, &ekm.ready.token);
        let tls = connection.tls().unwrap();
        assert!(!tls.is_early_data_accepted());
        assert_ne!(tls.handshake_kind(), Some(rustls::HandshakeKind::Resumed));
    }
}
