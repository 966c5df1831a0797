# How a key project calls the EKM over a VPC. Creating it calls the EKM: it fails when nothing answers.

locals {
  # Cloud KMS wants the DER in base64, which is what stands between the PEM's lines.
  certificates_der = [
    for pem in var.server_certificates_pem : replace(replace(pem, "/-----(BEGIN|END) CERTIFICATE-----/", ""), "/\\s/", "")
  ]
}

resource "google_kms_ekm_connection" "this" {
  project             = var.project_id
  name                = var.name
  location            = var.location
  key_management_mode = var.key_management_mode
  crypto_space_path   = var.crypto_space_path

  service_resolvers {
    service_directory_service = var.service_directory_service
    hostname                  = var.hostname

    dynamic "server_certificates" {
      for_each = local.certificates_der

      content {
        raw_der = server_certificates.value
      }
    }
  }

  # Google has no way to delete a connection: destroying would only forget it, and its name stays taken.
  lifecycle {
    prevent_destroy = true
  }
}
