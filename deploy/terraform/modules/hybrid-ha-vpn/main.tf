# An HA VPN with BGP to one site: one gateway with both interfaces in use, one Cloud Router.

locals {
  # What the peer is called follows from how many addresses it has.
  redundancy = { 1 = "SINGLE_IP_INTERNALLY_REDUNDANT", 2 = "TWO_IPS_REDUNDANCY", 4 = "FOUR_IPS_REDUNDANCY" }
}

resource "google_compute_ha_vpn_gateway" "this" {
  project = var.project_id
  name    = var.name
  region  = var.region
  network = var.network
}

resource "google_compute_external_vpn_gateway" "peer" {
  project         = var.project_id
  name            = "${var.name}-peer"
  redundancy_type = local.redundancy[length(var.peer_addresses)]

  dynamic "interface" {
    for_each = var.peer_addresses

    content {
      id         = interface.key
      ip_address = interface.value
    }
  }
}

resource "google_compute_router" "this" {
  project = var.project_id
  name    = var.name
  region  = var.region
  network = var.network

  # For all sessions: a session with a list of its own would announce that one alone, so none has.
  bgp {
    asn                = var.asn
    keepalive_interval = 20
    advertise_mode     = "CUSTOM"
    advertised_groups  = var.advertised_groups

    dynamic "advertised_ip_ranges" {
      for_each = var.advertised_ranges

      content {
        range = advertised_ip_ranges.value
      }
    }
  }
}

resource "google_compute_vpn_tunnel" "this" {
  for_each = var.tunnels

  project                         = var.project_id
  name                            = "${var.name}-${each.key}"
  region                          = var.region
  vpn_gateway                     = google_compute_ha_vpn_gateway.this.id
  vpn_gateway_interface           = each.value.gateway_interface
  peer_external_gateway           = google_compute_external_vpn_gateway.peer.id
  peer_external_gateway_interface = each.value.peer_interface
  router                          = google_compute_router.this.id
  ike_version                     = 2

  # Write-only: the secret is in no state and no plan.
  shared_secret_wo         = var.shared_secrets[each.key]
  shared_secret_wo_version = tostring(var.shared_secrets_version)
}

resource "google_compute_router_interface" "this" {
  for_each = var.tunnels

  project    = var.project_id
  name       = "${var.name}-${each.key}"
  region     = var.region
  router     = google_compute_router.this.name
  vpn_tunnel = google_compute_vpn_tunnel.this[each.key].name
  ip_range   = "${each.value.google_bgp_address}/30"
}

resource "google_compute_router_peer" "this" {
  for_each = var.tunnels

  project                   = var.project_id
  name                      = "${var.name}-${each.key}"
  region                    = var.region
  router                    = google_compute_router.this.name
  interface                 = google_compute_router_interface.this[each.key].name
  peer_ip_address           = each.value.peer_bgp_address
  peer_asn                  = each.value.peer_asn
  advertised_route_priority = each.value.route_priority
}
