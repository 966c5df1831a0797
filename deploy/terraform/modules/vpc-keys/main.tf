# What a key project needs to use the EKM over a VPC: a connection, keys, and an eye on both.

module "connection" {
  source = "../ekm-connection"

  project_id                = var.project_id
  name                      = var.name
  location                  = var.location
  service_directory_service = var.service_directory_service
  hostname                  = var.hostname
  server_certificates_pem   = var.server_certificates_pem
  key_management_mode       = var.key_management_mode
  crypto_space_path         = var.crypto_space_path
}

module "keys" {
  source = "../external-key"

  project_id          = var.project_id
  location            = var.location
  protection_level    = "EXTERNAL_VPC"
  connection_id       = module.connection.id
  key_management_mode = var.key_management_mode
  key_ring            = var.name
  keys                = var.keys
}

module "monitoring" {
  source = "../ekm-monitoring"

  project_id            = var.project_id
  name                  = var.name
  notification_channels = var.notification_channels
}
