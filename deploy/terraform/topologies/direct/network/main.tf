# Stage 1 of the direct topology: the VPC, the way to the site, and where Cloud KMS finds the site's load balancer. Nothing here calls the EKM.

locals {
  name = "ekm-${var.suffix}"

  # Cloud KMS calls the site itself, so the site has to know the way back.
  advertised_ranges = concat(module.google_ranges.kms, var.private_google_access ? module.google_ranges.private_google_access : [])
}

module "google_ranges" {
  source = "../../../modules/google-ranges"
}

resource "google_project_service" "vpc" {
  for_each = toset(["compute.googleapis.com", "monitoring.googleapis.com", "servicedirectory.googleapis.com"])

  project            = var.vpc_project.id
  service            = each.key
  disable_on_destroy = false
}

resource "google_compute_network" "ekm" {
  project                 = var.vpc_project.id
  name                    = local.name
  auto_create_subnetworks = false
  # Requests come from the keys' region, and the way to the site may begin in another one.
  routing_mode = "GLOBAL"

  depends_on = [google_project_service.vpc]
}

module "vpn" {
  source   = "../../../modules/hybrid-ha-vpn"
  for_each = var.vpn

  project_id             = var.vpc_project.id
  name                   = "${local.name}-${each.key}"
  network                = google_compute_network.ekm.id
  region                 = each.value.region
  asn                    = each.value.asn
  peer_addresses         = each.value.peer_addresses
  tunnels                = each.value.tunnels
  shared_secrets         = try(var.vpn_shared_secrets[each.key], {})
  shared_secrets_version = var.vpn_shared_secrets_version
  advertised_ranges      = local.advertised_ranges
}

module "interconnect" {
  source = "../../../modules/hybrid-interconnect"
  count  = var.interconnect == null ? 0 : 1

  project_id        = var.vpc_project.id
  name              = local.name
  network           = { id = google_compute_network.ekm.id, routing_mode = google_compute_network.ekm.routing_mode }
  type              = var.interconnect.type
  availability      = var.interconnect.availability
  asn               = var.interconnect.asn
  attachments       = var.interconnect.attachments
  advertised_ranges = local.advertised_ranges
}

module "endpoint" {
  source = "../../../modules/ekm-endpoint"

  vpc_project         = var.vpc_project
  location            = var.region
  name                = local.name
  network_name        = google_compute_network.ekm.name
  address             = var.endpoint.address
  port                = var.endpoint.port
  key_project_numbers = toset(values(var.key_projects))

  depends_on = [google_project_service.vpc]
}

module "uptime" {
  source = "../../../modules/ekm-uptime"

  project                   = var.vpc_project
  name                      = local.name
  hostname                  = var.hostname
  port                      = var.endpoint.port
  service_directory_service = module.endpoint.service
  private                   = true
  notification_channels     = var.notification_channels
}
