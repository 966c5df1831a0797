mock_provider "google" {
  source          = "../../mocks"
  override_during = plan
}

variables {
  project_id                = "keys-example"
  name                      = "ekm-a1"
  location                  = "europe-west3"
  service_directory_service = "projects/net-example/locations/europe-west3/namespaces/ekm-a1/services/ekm"
  hostname                  = "ekm.example.com"
  server_certificates_pem   = ["-----BEGIN CERTIFICATE-----\nMIIB\nAgM=\n-----END CERTIFICATE-----\n"]
}

run "a_connection_pins_the_der_of_each_pem" {
  command = plan
  variables { server_certificates_pem = ["-----BEGIN CERTIFICATE-----\nMIIB\r\nAgM=\n-----END CERTIFICATE-----\n", file("../../topologies/example-certificate.pem")] }

  assert {
    condition = [for certificate in google_kms_ekm_connection.this.service_resolvers[0].server_certificates : certificate.raw_der] == [
      "MIIBAgM=",
      "MIIBqDCCAU2gAwIBAgIUGK3E+Ka6owdtxId/nwJ28jargg8wCgYIKoZIzj0EAwIwGjEYMBYGA1UEAwwPZWttLmV4YW1wbGUuY29tMCAXDTI2MTEyMjE5MTc1NloYDzIxMjYxMDI5MTkxNzU2WjAaMRgwFgYDVQQDDA9la20uZXhhbXBsZS5jb20wWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAARrPfmJ4bXsv8j2OfZmxdaJREm90gaqWc+CqQofgcIgi8vuLUgnO73UtiIzTyxeN9eFep0Qf0PErDAXzsGpQLzao28wbTAdBgNVHQ4EFgQUiXigBOM/KIJ4ZHhY9HiDhg0Abv0wHwYDVR0jBBgwFoAUiXigBOM/KIJ4ZHhY9HiDhg0Abv0wDwYDVR0TAQH/BAUwAwEB/zAaBgNVHREEEzARgg9la20uZXhhbXBsZS5jb20wCgYIKoZIzj0EAwIDSQAwRgIhAMOt0Wl057/DRUlbYmCT0HWsGeClCcUJzo1xxWLLP3MCAiEAxIHQGzeFqwP2bAUoNk7rQ0aOrFeJ1KUBoSmh5UuUNBY=",
    ]
    error_message = "Base64 of the DER, without the PEM's lines."
  }
  assert {
    condition     = google_kms_ekm_connection.this.location == "europe-west3" && google_kms_ekm_connection.this.key_management_mode == "MANUAL"
    error_message = "In the keys' region; keys are made at the EKM unless it is said otherwise."
  }
  assert {
    condition     = length(google_kms_ekm_connection.this.service_resolvers) == 1
    error_message = "Cloud KMS takes exactly one resolver."
  }
  assert {
    condition     = output.audience == "https://ekm.example.com"
    error_message = "The tokens' audience is the host name, without port and path."
  }
  assert {
    condition     = endswith(output.verify_command, "/v1/projects/keys-example/locations/europe-west3/ekmConnections/ekm-a1:verifyConnectivity")
    error_message = "The command names the connection."
  }
}

run "cloud_kms_makes_keys_in_a_crypto_space" {
  command = plan
  variables {
    key_management_mode = "CLOUD_KMS"
    crypto_space_path   = "v0/cryptospaces/cloud"
  }

  assert {
    condition     = google_kms_ekm_connection.this.crypto_space_path == "v0/cryptospaces/cloud"
    error_message = "The crypto space is handed on."
  }
}

run "service_directory_in_another_location_is_refused" {
  command = plan
  variables { service_directory_service = "projects/net-example/locations/europe-west4/namespaces/ekm-a1/services/ekm" }
  expect_failures = [var.service_directory_service]
}

run "an_endpoint_is_no_service" {
  command = plan
  variables { service_directory_service = "projects/net-example/locations/europe-west3/namespaces/ekm-a1/services/ekm/endpoints/vip" }
  expect_failures = [var.service_directory_service]
}

run "a_connection_in_a_multi_region_is_refused" {
  command = plan
  variables {
    location                  = "eur3"
    service_directory_service = "projects/net-example/locations/eur3/namespaces/ekm-a1/services/ekm"
  }
  expect_failures = [var.location]
}

run "ten_certificates_are_taken" {
  command = plan
  variables { server_certificates_pem = [for i in range(10) : "-----BEGIN CERTIFICATE-----\nMI${10 + i}\n-----END CERTIFICATE-----"] }

  assert {
    condition     = length(google_kms_ekm_connection.this.service_resolvers[0].server_certificates) == 10
    error_message = "Ten is what Google takes."
  }
}

run "more_than_ten_certificates_are_refused" {
  command = plan
  variables { server_certificates_pem = [for i in range(11) : "-----BEGIN CERTIFICATE-----\nMI${10 + i}\n-----END CERTIFICATE-----"] }
  expect_failures = [var.server_certificates_pem]
}

run "no_certificate_is_refused" {
  command = plan
  variables { server_certificates_pem = [] }
  expect_failures = [var.server_certificates_pem]
}

run "a_chain_is_no_leaf" {
  command = plan
  variables { server_certificates_pem = ["-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n-----BEGIN CERTIFICATE-----\nMIIC\n-----END CERTIFICATE-----\n"] }
  expect_failures = [var.server_certificates_pem]
}

run "a_private_key_is_refused" {
  command = plan
  variables { server_certificates_pem = ["-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\n"] }
  expect_failures = [var.server_certificates_pem]
}

run "the_same_certificate_twice_is_refused" {
  command = plan
  variables { server_certificates_pem = [for i in range(2) : "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----"] }
  expect_failures = [var.server_certificates_pem]
}

run "a_url_is_no_host_name" {
  command = plan
  variables { hostname = "https://ekm.example.com" }
  expect_failures = [var.hostname]
}

run "cloud_kms_needs_a_crypto_space" {
  command = plan
  variables { key_management_mode = "CLOUD_KMS" }
  expect_failures = [var.crypto_space_path]
}

run "manual_takes_no_crypto_space" {
  command = plan
  variables { crypto_space_path = "v0/cryptospaces/cloud" }
  expect_failures = [var.crypto_space_path]
}

run "a_crypto_space_with_a_leading_slash_is_refused" {
  command = plan
  variables {
    key_management_mode = "CLOUD_KMS"
    crypto_space_path   = "/v0/cryptospaces/cloud"
  }
  expect_failures = [var.crypto_space_path]
}

run "a_mode_that_google_does_not_know_is_refused" {
  command = plan
  variables {
    key_management_mode = "AUTOMATIC"
    crypto_space_path   = null
  }
  expect_failures = [var.key_management_mode]
}

run "a_name_with_a_slash_is_refused" {
  command = plan
  variables { name = "ekm/a1" }
  expect_failures = [var.name]
}
