# A key ring, and the keys and key versions in it that stand for keys at the EKM. Creating a version calls the EKM: it fails when a wrap fails.

locals {
  vpc = var.protection_level == "EXTERNAL_VPC"

  versions = merge([
    for name, key in var.keys : {
      for label, version in key.versions : "${name}/${label}" => { key = name, path = version.path, enabled = version.enabled }
    }
  ]...)
}

# Nothing in this file can be deleted at Google: rings and keys stay, and a version's half of the key material is lost for good. A version
# with the same path at the EKM would be another key.

resource "google_kms_key_ring" "this" {
  project  = var.project_id
  name     = var.key_ring
  location = var.location

  lifecycle {
    prevent_destroy = true
  }
}

resource "google_kms_crypto_key" "this" {
  for_each = var.keys

  key_ring                   = google_kms_key_ring.this.id
  name                       = each.key
  purpose                    = each.value.purpose
  crypto_key_backend         = local.vpc ? var.connection_id : null
  destroy_scheduled_duration = each.value.destroy_scheduled_duration
  rotation_period            = each.value.rotation_period
  labels                     = each.value.labels

  # Cloud KMS cannot guess the first version's path. With CLOUD_KMS it makes the key at the EKM itself.
  skip_initial_version_creation = var.key_management_mode == "MANUAL"

  version_template {
    algorithm        = each.value.algorithm
    protection_level = var.protection_level
  }

  lifecycle {
    prevent_destroy = true

    precondition {
      condition     = !local.vpc || can(regex("^projects/[^/]+/locations/${var.location}/ekmConnections/[^/]+$", var.connection_id))
      error_message = "EXTERNAL_VPC keys need connection_id, an EKM connection in the keys' own location: projects/PROJECT/locations/${var.location}/ekmConnections/NAME."
    }
  }
}

resource "google_kms_crypto_key_version" "this" {
  for_each = local.versions

  crypto_key = google_kms_crypto_key.this[each.value.key].id
  state      = each.value.enabled ? "ENABLED" : "DISABLED"

  external_protection_level_options {
    ekm_connection_key_path = local.vpc ? each.value.path : null
    external_key_uri        = local.vpc ? null : "https://${var.hostname}/${each.value.path}"
  }

  lifecycle {
    prevent_destroy = true
  }
}
