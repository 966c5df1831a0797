mock_provider "google" {
  source          = "../../mocks"
  override_during = plan
}

variables {
  project_id       = "keys-example"
  location         = "europe-west3"
  key_ring         = "ekm-a1"
  protection_level = "EXTERNAL_VPC"
  connection_id    = "projects/keys-example/locations/europe-west3/ekmConnections/ekm-a1"
  keys             = { orders = { versions = { first = { path = "v0/keys/orders" } } } }
}

run "a_key_behind_a_connection" {
  command = plan

  assert {
    condition     = google_kms_crypto_key.this["orders"].crypto_key_backend == var.connection_id && google_kms_crypto_key.this["orders"].version_template[0].protection_level == "EXTERNAL_VPC"
    error_message = "The key is EXTERNAL_VPC, with the connection as its backend."
  }
  assert {
    condition     = google_kms_crypto_key.this["orders"].version_template[0].algorithm == "EXTERNAL_SYMMETRIC_ENCRYPTION" && google_kms_crypto_key.this["orders"].purpose == "ENCRYPT_DECRYPT"
    error_message = "Symmetric unless it is said otherwise."
  }
  assert {
    condition     = google_kms_crypto_key.this["orders"].skip_initial_version_creation && google_kms_crypto_key.this["orders"].rotation_period == null
    error_message = "A manual key begins without a version and is not rotated by Cloud KMS."
  }
  assert {
    condition     = google_kms_crypto_key_version.this["orders/first"].external_protection_level_options[0].ekm_connection_key_path == "v0/keys/orders" && google_kms_crypto_key_version.this["orders/first"].external_protection_level_options[0].external_key_uri == null
    error_message = "A version behind a connection has a path and no URI."
  }
  assert {
    condition     = google_kms_key_ring.this.location == "europe-west3"
    error_message = "The ring is where the keys are."
  }
  assert {
    condition     = output.set_primary_commands["orders/first"] == "gcloud kms keys update orders --keyring ekm-a1 --location europe-west3 --project keys-example --primary-version 3"
    error_message = "The command that no resource replaces."
  }
}

run "a_key_over_the_internet_in_a_multi_region" {
  command = plan
  variables {
    location         = "eur3"
    protection_level = "EXTERNAL"
    connection_id    = null
    hostname         = "ekm.example.com"
    keys             = { orders = { versions = { first = { path = "v0/keys/orders" }, second = { path = "v0/keys/orders-2", enabled = false } } } }
  }

  assert {
    condition     = google_kms_crypto_key_version.this["orders/first"].external_protection_level_options[0].external_key_uri == "https://ekm.example.com/v0/keys/orders" && google_kms_crypto_key_version.this["orders/first"].external_protection_level_options[0].ekm_connection_key_path == null
    error_message = "A version over the internet has a URI and no path."
  }
  assert {
    condition     = google_kms_crypto_key_version.this["orders/first"].state == "ENABLED" && google_kms_crypto_key_version.this["orders/second"].state == "DISABLED"
    error_message = "Enabled unless it is said otherwise."
  }
}

run "cloud_kms_makes_and_rotates_versions_itself" {
  command = plan
  variables {
    key_management_mode = "CLOUD_KMS"
    keys                = { orders = { rotation_period = "7776000s" } }
  }

  assert {
    condition     = !google_kms_crypto_key.this["orders"].skip_initial_version_creation && google_kms_crypto_key.this["orders"].rotation_period == "7776000s" && length(google_kms_crypto_key_version.this) == 0
    error_message = "Its first version comes with the key."
  }
}

run "a_signing_key_has_no_primary_version" {
  command = plan
  variables { keys = { release = { purpose = "ASYMMETRIC_SIGN", algorithm = "EC_SIGN_P256_SHA256", versions = { first = { path = "v0/keys/release" } } } } }

  assert {
    condition     = length(output.set_primary_commands) == 0
    error_message = "Signatures name their version."
  }
}

run "external_vpc_in_a_multi_region_is_refused" {
  command = plan
  variables {
    location      = "eur3"
    connection_id = "projects/keys-example/locations/eur3/ekmConnections/ekm-a1"
  }
  expect_failures = [var.location]
}

run "external_vpc_in_europe_is_refused" {
  command = plan
  variables {
    location      = "europe"
    connection_id = "projects/keys-example/locations/europe/ekmConnections/ekm-a1"
  }
  expect_failures = [var.location]
}

run "global_has_no_external_keys" {
  command = plan
  variables {
    location         = "global"
    protection_level = "EXTERNAL"
    connection_id    = null
    hostname         = "ekm.example.com"
  }
  expect_failures = [var.location]
}

run "nam_eur_asia1_has_no_external_keys" {
  command = plan
  variables {
    location         = "nam-eur-asia1"
    protection_level = "EXTERNAL"
    connection_id    = null
    hostname         = "ekm.example.com"
  }
  expect_failures = [var.location]
}

run "a_connection_in_another_location_is_refused" {
  command = plan
  variables { connection_id = "projects/keys-example/locations/europe-west4/ekmConnections/ekm-a1" }
  expect_failures = [google_kms_crypto_key.this["orders"]]
}

run "external_vpc_without_a_connection_is_refused" {
  command = plan
  variables { connection_id = null }
  expect_failures = [google_kms_crypto_key.this["orders"]]
}

run "external_takes_no_connection" {
  command = plan
  variables {
    protection_level = "EXTERNAL"
    hostname         = "ekm.example.com"
  }
  expect_failures = [var.connection_id]
}

run "external_needs_a_host_name" {
  command = plan
  variables {
    protection_level = "EXTERNAL"
    connection_id    = null
    keys             = {}
  }
  expect_failures = [var.hostname]
}

run "a_host_name_has_no_scheme" {
  command = plan
  variables {
    protection_level = "EXTERNAL"
    connection_id    = null
    hostname         = "https://ekm.example.com"
  }
  expect_failures = [var.hostname]
}

run "manual_keys_are_not_rotated_by_cloud_kms" {
  command = plan
  variables { keys = { orders = { rotation_period = "7776000s" } } }
  expect_failures = [var.keys]
}

run "signing_keys_are_not_rotated_by_cloud_kms" {
  command = plan
  variables {
    key_management_mode = "CLOUD_KMS"
    keys                = { release = { purpose = "ASYMMETRIC_SIGN", algorithm = "EC_SIGN_P256_SHA256", rotation_period = "7776000s" } }
  }
  expect_failures = [var.keys]
}

run "a_rotation_period_is_in_seconds" {
  command = plan
  variables {
    key_management_mode = "CLOUD_KMS"
    keys                = { orders = { rotation_period = "90d" } }
  }
  expect_failures = [var.keys]
}

run "a_destruction_can_be_taken_back_for_a_day_at_least" {
  command = plan
  variables { keys = { orders = { destroy_scheduled_duration = "0s" } } }
  expect_failures = [var.keys]
}

run "cloud_kms_takes_no_paths" {
  command = plan
  variables { key_management_mode = "CLOUD_KMS" }
  expect_failures = [var.keys]
}

run "cloud_kms_makes_no_keys_over_the_internet" {
  command = plan
  variables {
    key_management_mode = "CLOUD_KMS"
    protection_level    = "EXTERNAL"
    connection_id       = null
    hostname            = "ekm.example.com"
    keys                = {}
  }
  expect_failures = [var.key_management_mode]
}

run "an_algorithm_fits_its_purpose" {
  command = plan
  variables { keys = { release = { purpose = "ASYMMETRIC_SIGN" } } }
  expect_failures = [var.keys]
}

run "an_algorithm_that_the_ekm_lacks_is_refused" {
  command = plan
  variables { keys = { release = { purpose = "ASYMMETRIC_SIGN", algorithm = "EC_SIGN_SECP256K1_SHA256" } } }
  expect_failures = [var.keys]
}

run "a_uri_is_no_path" {
  command = plan
  variables { keys = { orders = { versions = { first = { path = "https://ekm.example.com/v0/keys/orders" } } } } }
  expect_failures = [var.keys]
}

run "a_path_begins_without_a_slash" {
  command = plan
  variables { keys = { orders = { versions = { first = { path = "/v0/keys/orders" } } } } }
  expect_failures = [var.keys]
}

run "a_path_names_no_method" {
  command = plan
  variables { keys = { orders = { versions = { first = { path = "v0/keys/orders:wrap" } } } } }
  expect_failures = [var.keys]
}

run "each_version_of_a_signing_key_has_a_path_of_its_own" {
  command = plan
  variables { keys = { release = { purpose = "ASYMMETRIC_SIGN", algorithm = "EC_SIGN_P256_SHA256", versions = { a = { path = "v0/keys/r" }, b = { path = "v0/keys/r" } } } } }
  expect_failures = [var.keys]
}

run "a_protection_level_is_an_external_one" {
  command = plan
  variables {
    protection_level = "HSM"
    connection_id    = null
    keys             = {}
  }
  expect_failures = [var.protection_level]
}

run "a_key_ring_without_a_name_is_refused" {
  command = plan
  variables { key_ring = "" }
  expect_failures = [var.key_ring]
}

run "a_mode_that_google_does_not_know_is_refused" {
  command = plan
  variables {
    key_management_mode = "AUTOMATIC"
    keys                = {}
  }
  expect_failures = [var.key_management_mode]
}
