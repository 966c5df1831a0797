# Stage 2: connections and keys. Creating them calls the EKM, so the network stage has to work first: see the README.

module "project" {
  source   = "../../../modules/vpc-keys"
  for_each = var.key_projects

  project_id                = each.key
  name                      = "ekm-${var.network.suffix}"
  location                  = var.network.location
  service_directory_service = var.network.service_directory_service
  hostname                  = var.network.hostname
  server_certificates_pem   = [for name in var.server_certificate_files : file(name)]
  key_management_mode       = each.value.key_management_mode
  crypto_space_path         = each.value.crypto_space_path
  keys                      = each.value.keys
  notification_channels     = each.value.notification_channels
}
