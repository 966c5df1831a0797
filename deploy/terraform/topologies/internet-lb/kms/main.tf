# Stage 2: keys. Creating a version calls the EKM at its public name, so the network stage and DNS have to work first: see the README.

module "keys" {
  source   = "../../../modules/external-key"
  for_each = var.key_projects

  project_id       = each.key
  location         = var.location
  protection_level = "EXTERNAL"
  hostname         = var.network.hostname
  key_ring         = "ekm-${var.network.suffix}"
  keys             = each.value.keys
}

module "monitoring" {
  source   = "../../../modules/ekm-monitoring"
  for_each = var.key_projects

  project_id            = each.key
  name                  = "ekm-${var.network.suffix}"
  notification_channels = each.value.notification_channels
}
