# Stage 1 of the topology with a load balancer in the VPC: the VPC, the way to two sites, proxies for each, one address for all, and where Cloud
# KMS finds it. Nothing here calls the EKM.

locals {
  name = "ekm-${var.suffix}"

  # The sites see the proxies' addresses, which ALL_SUBNETS announces; Cloud KMS' own range ends at the proxies.
  advertised_ranges = var.private_google_access ? module.google_ranges.private_google_access : []

  # Where the images are: REGION-docker.pkg.dev/PROJECT/…
  image_projects = toset([for site in values(var.sites) : try(split("/", site.image)[1], "")])
}

module "google_ranges" {
  source = "../../../modules/google-ranges"
}

resource "google_project_service" "vpc" {
  for_each = toset(["compute.googleapis.com", "logging.googleapis.com", "monitoring.googleapis.com", "servicedirectory.googleapis.com"])

  project            = var.vpc_project.id
  service            = each.key
  disable_on_destroy = false
}

resource "google_compute_network" "ekm" {
  project                 = var.vpc_project.id
  name                    = local.name
  auto_create_subnetworks = false
  # The way to a site may begin in another region than the proxies'.
  routing_mode = "GLOBAL"

  depends_on = [google_project_service.vpc]
}

resource "google_compute_subnetwork" "proxies" {
  project       = var.vpc_project.id
  name          = "${local.name}-proxies"
  region        = var.region
  network       = google_compute_network.ekm.id
  ip_cidr_range = var.subnet_range
  # The proxies have no internet access: image and logs go this way.
  private_ip_google_access = true
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

resource "google_service_account" "proxy" {
  project      = var.vpc_project.id
  account_id   = "${local.name}-proxy"
  display_name = "TCP proxies to the EKM"
}

resource "google_project_iam_member" "proxy" {
  for_each = toset(["roles/logging.logWriter", "roles/monitoring.metricWriter"])

  project = var.vpc_project.id
  role    = each.key
  member  = "serviceAccount:${google_service_account.proxy.email}"
}

resource "google_project_iam_member" "image" {
  for_each = local.image_projects

  project = each.key
  role    = "roles/artifactregistry.reader"
  member  = "serviceAccount:${google_service_account.proxy.email}"
}

module "proxies" {
  source   = "../../../modules/tcp-proxy-mig"
  for_each = var.sites

  project_id         = var.vpc_project.id
  name               = "${local.name}-${each.key}"
  region             = var.region
  zones              = var.zones
  subnetwork         = google_compute_subnetwork.proxies.id
  service_account    = google_service_account.proxy.email
  image              = each.value.image
  instances          = each.value.instances
  machine_type       = each.value.machine_type
  boot_image         = each.value.boot_image
  frontends          = each.value.frontends
  frontend_port      = each.value.frontend_port
  connect_timeout_ms = each.value.connect_timeout_ms

  depends_on = [google_project_iam_member.image]
}

module "load_balancer" {
  source = "../../../modules/internal-nlb"

  project_id     = var.vpc_project.id
  name           = local.name
  region         = var.region
  network        = google_compute_network.ekm.id
  subnetwork     = google_compute_subnetwork.proxies.id
  address        = var.address
  backends       = { for site, proxy in module.proxies : site => { group = proxy.instance_group, failover = var.sites[site].backup } }
  failover_ratio = var.failover_ratio
}

module "endpoint" {
  source = "../../../modules/ekm-endpoint"

  vpc_project         = var.vpc_project
  location            = var.region
  name                = local.name
  network_name        = google_compute_network.ekm.name
  address             = module.load_balancer.address
  port                = module.load_balancer.port
  key_project_numbers = toset(values(var.key_projects))

  depends_on = [google_project_service.vpc]
}

module "uptime" {
  source = "../../../modules/ekm-uptime"

  project                   = var.vpc_project
  name                      = local.name
  hostname                  = var.hostname
  port                      = module.load_balancer.port
  service_directory_service = module.endpoint.service
  private                   = true
  notification_channels     = var.notification_channels
}
