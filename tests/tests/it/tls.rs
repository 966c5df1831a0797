//! TLS: versions, key exchange, HTTP by ALPN, and a certificate that changes while the service runs.

use std::fs;
use std::sync::Arc;

use ekm_tests::{Connection, Ekm, curl_over_http2, tls_config};
use rustls::version::{TLS12, TLS13};
use rustls::{NamedGroup, ProtocolVersion};

#[test]
fn tls_1_3_comes_with_hybrid_post_quantum_key_exchange() {
    let ekm = Ekm::dev(&[]);
    let connection = ekm.connect();
    let tls = connection.tls().unwrap();
    assert_eq!(tls.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(tls.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
}

#[test]
fn a_client_with_tls_1_2_only_is_served_too() {
    let ekm = Ekm::dev(&[]);
    for (version, expected) in [(&TLS12, ProtocolVersion::TLSv1_2), (&TLS13, ProtocolVersion::TLSv1_3)] {
        let mut roots = rustls::RootCertStore::empty();
        let pem = fs::read(&ekm.ready.ca_file).unwrap();
        let certificate = rustls::pki_types::pem::PemObject::from_pem_slice(&pem).unwrap();
        roots.add(certificate).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version]).unwrap();
        let config = config.with_root_certificates(roots).with_no_client_auth();
        let mut connection = Connection::open_with(ekm.address(), config).unwrap();
        assert_eq!(connection.tls().unwrap().protocol_version(), Some(expected));
        let answer = connection.post("/v0/keys/demo:wrap", &ekm.ready.token, r#"{"plaintext":"AA=="}"#);
        assert_eq!(answer.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_works_with_many_requests_at_once() {
    let ekm = Ekm::dev(&["--softhsm"]);
    let connector = tokio_rustls::TlsConnector::from(Arc::new(tls_config(&ekm.ready.ca_file, &["h2"])));
    let stream = tokio::net::TcpStream::connect(ekm.address()).await.unwrap();
    let stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (send, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let wrap = |send: h2::client::SendRequest<bytes::Bytes>| {
        let request = http::Request::post(format!("{}/v0/keys/demo:wrap", ekm.ready.base_url))
            .header("authorization", format!("Bearer {}", ekm.ready.token))
            .header("content-type", "application/json")
            .body(())
            .unwrap();
        async move {
            let (answer, mut body) = send.ready().await.unwrap().send_request(request, false).unwrap();
            body.send_data(bytes::Bytes::from_static(br#"{"plaintext":"AA=="}"#), true).unwrap();
            answer.await.unwrap().status().as_u16()
        }
    };
    // With the first answer the client has the server's settings, and so knows how many streams it may open at a time.
    assert_eq!(wrap(send.clone()).await, 200);
    let mut answers: tokio::task::JoinSet<u16> = (0..200).map(|_| wrap(send.clone())).collect();
    while let Some(status) = answers.join_next().await {
        assert_eq!(status.unwrap(), 200);
    }
    connection.abort();
}

/// An answer that leaves before its request is complete is followed by a reset of the stream, and curl 7.88 then drops the answer.
#[test]
fn curl_over_http2_always_reads_why_it_was_refused() {
    let ekm = Ekm::dev(&[]);
    let url = |path: &str| format!("{}{path}", ekm.ready.base_url);
    let big = ekm.directory.path().join("big.json");
    fs::write(&big, format!("{{\"plaintext\":\"{}\"}}", "A".repeat(400_000))).unwrap();
    let (token, big) = (format!("Authorization: Bearer {}", ekm.ready.token), format!("@{}", big.display()));
    for (header, path, body, status) in [
        ("X: no token", "/v0/keys/demo:wrap", "{}", "401"),
        (&*token, "/v0/keys/demo:wrapp", "{}", "404"),
        (&*token, "/v0/keys/demo:wrap", &*big, "400"),
    ] {
        for _ in 0..15 {
            let (stdout, stderr) = curl_over_http2(&ekm.ready.ca_file, &url(path), header, body);
            assert!(stdout.ends_with(&format!(" {status} 2")) && stdout.starts_with("{\"code\":"), "{stdout} {stderr}");
        }
    }
}

#[test]
fn a_new_certificate_is_used_without_a_restart_and_a_bad_one_is_not() {
    let ekm = Ekm::dev(&[]);
    let mut old_connection = ekm.connect();
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let certificate = rcgen::CertificateParams::new(["localhost".into()]).unwrap().self_signed(&key).unwrap();
    let new_ca = ekm.directory.path().join("new-ca.pem");
    fs::write(&new_ca, certificate.pem()).unwrap();

    // The certificate alone does not fit the old key: refused, the old pair stays.
    let file = &ekm.ready.ca_file;
    let old_ca = ekm.directory.path().join("old-ca.pem");
    fs::copy(file, &old_ca).unwrap();
    fs::write(file, certificate.pem()).unwrap();
    ekm.signal(rustix::process::Signal::HUP);
    ekm.eventually("refused", || ekm.metric("ekm_certificate_reloads_total{result=\"error\"}") > 0.0);
    assert!(Connection::open(ekm.address(), &old_ca).is_ok());

    fs::write(ekm.directory.path().join("tls/private-key.pem"), key.serialize_pem()).unwrap();
    ekm.signal(rustix::process::Signal::HUP);
    ekm.eventually("taken", || Connection::open(ekm.address(), &new_ca).is_ok());
    let answer = old_connection.post("/v0/keys/demo:wrap", &ekm.ready.token, r#"{"plaintext":"AA=="}"#);
    assert_eq!(answer.status, 200, "open connections go on");
}
