# VLAN attachments of a Dedicated or Partner Interconnect, in the shape of one of Google's two availability tiers; one Cloud Router for each region.

locals {
  dedicated = var.type == "DEDICATED"
  regions   = toset([for attachment in values(var.attachments) : attachment.region])
}

resource "google_compute_router" "this" {
  for_each = local.regions

  project = var.project_id
  name    = "${var.name}-${each.key}"
  region  = each.key
  network = var.network.id

  # On the router and on no session: a partner's sessions are made by themselves and take it from here.
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

  lifecycle {
    precondition {
      condition     = length(local.regions) == 1 || var.network.routing_mode == "GLOBAL"
      error_message = "The 99.99 shape needs global dynamic routing: with routing_mode REGIONAL a region does not learn what the other region's attachments announce. Set the network's routing_mode to GLOBAL."
    }
  }
}

resource "google_compute_interconnect_attachment" "this" {
  for_each = var.attachments

  project                  = var.project_id
  name                     = "${var.name}-${each.key}"
  region                   = each.value.region
  router                   = google_compute_router.this[each.value.region].id
  type                     = var.type
  mtu                      = var.mtu
  admin_enabled            = true
  interconnect             = local.dedicated ? each.value.interconnect : null
  bandwidth                = local.dedicated ? each.value.bandwidth : null
  vlan_tag8021q            = local.dedicated ? each.value.vlan_tag : null
  candidate_subnets        = local.dedicated ? each.value.candidate_subnets : null
  edge_availability_domain = local.dedicated ? null : "AVAILABILITY_DOMAIN_${each.value.edge_availability_domain}"
}

# A partner makes interface and session by itself.

resource "google_compute_router_interface" "this" {
  for_each = local.dedicated ? var.attachments : {}

  project                 = var.project_id
  name                    = "${var.name}-${each.key}"
  region                  = each.value.region
  router                  = google_compute_router.this[each.value.region].name
  interconnect_attachment = google_compute_interconnect_attachment.this[each.key].self_link
  ip_range                = google_compute_interconnect_attachment.this[each.key].cloud_router_ip_address
}

resource "google_compute_router_peer" "this" {
  for_each = local.dedicated ? var.attachments : {}

  project                   = var.project_id
  name                      = "${var.name}-${each.key}"
  region                    = each.value.region
  router                    = google_compute_router.this[each.value.region].name
  interface                 = google_compute_router_interface.this[each.key].name
  peer_ip_address           = split("/", google_compute_interconnect_attachment.this[each.key].customer_router_ip_address)[0]
  peer_asn                  = each.value.peer_asn
  advertised_route_priority = each.value.route_priority

  # Finds a dead path in 5 seconds; the session's own hold time is 60.
  bfd {
    session_initialization_mode = "ACTIVE"
    min_receive_interval        = 1000
    min_transmit_interval       = 1000
    multiplier                  = 5
  }
}

# A warning and no error: some want the tier more than the isolation.
check "the_connection_stays_in_one_region" {
  assert {
    condition     = var.availability == "99.9" || !var.single_region
    error_message = "The 99.99 tier leaves the region: requests to the EKM of one region may pass through the other one, and a fault there can be felt here. For keys in a single region Google recommends 99.9."
  }
}
