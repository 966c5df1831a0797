# Stage 1 of the topology with a load balancer on the internet: the VPC, the way to the sites, and one public address. Nothing here calls the EKM.

locals {
  name = "ekm-${var.suffix}"

  # The load balancer's proxies and its probes call the sites; Cloud KMS itself only comes as far as the public address.
  advertised_ranges = concat(module.google_ranges.load_balancers, var.private_google_access ? module.google_ranges.private_google_access : [])
}

module "google_ranges" {
  source = "../../../modules/google-ranges"
}

resource "google_project_service" "vpc" {
  for_each = toset(["compute.googleapis.com", "monitoring.googleapis.com"])

  project            = var.vpc_project.id
  service            = each.key
  disable_on_destroy = false
}

resource "google_compute_network" "ekm" {
  project                 = var.vpc_project.id
  name                    = local.name
  auto_create_subnetworks = false
  # Hybrid endpoints work with no other.
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
  single_region     = false
  advertised_ranges = local.advertised_ranges
}

module "load_balancer" {
  source = "../../../modules/internet-proxy-nlb"

  project_id               = var.vpc_project.id
  name                     = local.name
  network                  = { id = google_compute_network.ekm.id, routing_mode = google_compute_network.ekm.routing_mode }
  sites                    = var.sites
  port                     = var.frontend_port
  health_path              = var.health_path
  connections_per_frontend = var.connections_per_frontend
}

# The host name in a zone of Cloud DNS, if it is there.
resource "google_dns_record_set" "ekm" {
  count = var.dns_zone == null ? 0 : 1

  project      = var.dns_zone.project_id
  managed_zone = var.dns_zone.name
  name         = "${var.hostname}."
  type         = "A"
  ttl          = 300
  rrdatas      = [module.load_balancer.address]
}

module "uptime" {
  source = "../../../modules/ekm-uptime"

  project               = var.vpc_project
  name                  = local.name
  hostname              = var.hostname
  private               = false
  notification_channels = var.notification_channels
}
