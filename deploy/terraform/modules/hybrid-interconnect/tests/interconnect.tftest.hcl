mock_provider "google" {
  source          = "../../mocks"
  override_during = plan
}

variables {
  project_id        = "net-example"
  name              = "ekm-a1"
  network           = { id = "projects/net-example/global/networks/ekm-a1", routing_mode = "GLOBAL" }
  type              = "DEDICATED"
  availability      = "99.9"
  advertised_ranges = ["35.199.192.0/19"]
  attachments = {
    a = { region = "europe-west3", metro = "fra", edge_availability_domain = 1, interconnect = "https://www.googleapis.com/compute/v1/projects/net-example/global/interconnects/fra-1", peer_asn = 65010, vlan_tag = 101, bandwidth = "BPS_1G" }
    b = { region = "europe-west3", metro = "fra", edge_availability_domain = 2, interconnect = "https://www.googleapis.com/compute/v1/projects/net-example/global/interconnects/fra-2", peer_asn = 65010, vlan_tag = 101, bandwidth = "BPS_1G" }
  }
}

run "dedicated_in_the_lower_tier_is_two_attachments_of_one_region" {
  command = plan

  assert {
    condition     = length(google_compute_interconnect_attachment.this) == 2 && keys(google_compute_router.this) == ["europe-west3"]
    error_message = "Two attachments, one router."
  }
  assert {
    condition     = alltrue([for attachment in google_compute_interconnect_attachment.this : attachment.type == "DEDICATED" && attachment.interconnect == var.attachments[trimprefix(attachment.name, "ekm-a1-")].interconnect && attachment.vlan_tag8021q == 101 && attachment.bandwidth == "BPS_1G"])
    error_message = "Each is on its interconnect, with VLAN and bandwidth."
  }
  assert {
    condition     = google_compute_router_interface.this["a"].ip_range == "169.254.60.1/29" && google_compute_router_peer.this["a"].peer_ip_address == "169.254.60.2"
    error_message = "The session's addresses are those that Google gave the attachment."
  }
  assert {
    condition     = alltrue([for peer in google_compute_router_peer.this : peer.bfd[0].session_initialization_mode == "ACTIVE" && peer.advertise_mode == null])
    error_message = "BFD on, and no session overrides what the router announces."
  }
  assert {
    condition     = google_compute_router.this["europe-west3"].bgp[0].advertise_mode == "CUSTOM" && google_compute_router.this["europe-west3"].bgp[0].advertised_groups == tolist(["ALL_SUBNETS"]) && output.advertised_ranges == tolist(["35.199.192.0/19"])
    error_message = "Subnets and ranges are announced."
  }
}

run "a_partner_makes_the_sessions_itself" {
  command = plan
  variables {
    type = "PARTNER"
    attachments = {
      a = { region = "europe-west3", metro = "fra", edge_availability_domain = 1 }
      b = { region = "europe-west3", metro = "fra", edge_availability_domain = 2 }
    }
  }

  assert {
    condition     = length(google_compute_router_interface.this) == 0 && length(google_compute_router_peer.this) == 0
    error_message = "No interfaces and no sessions of ours."
  }
  assert {
    condition     = toset([for attachment in google_compute_interconnect_attachment.this : attachment.edge_availability_domain]) == toset(["AVAILABILITY_DOMAIN_1", "AVAILABILITY_DOMAIN_2"])
    error_message = "Both edge availability domains."
  }
  assert {
    condition     = google_compute_router.this["europe-west3"].bgp[0].asn == 16550 && [for range in google_compute_router.this["europe-west3"].bgp[0].advertised_ip_ranges : range.range] == ["35.199.192.0/19"]
    error_message = "The partner's sessions take ASN and ranges from the router."
  }
  assert {
    condition     = length(output.pairing_keys) == 2
    error_message = "The partner needs a pairing key for each attachment."
  }
}

run "the_higher_tier_warns_that_it_leaves_the_region" {
  command = plan
  variables {
    availability = "99.99"
    attachments = {
      a = { region = "europe-west3", metro = "fra", edge_availability_domain = 1, interconnect = "https://www.googleapis.com/compute/v1/projects/net-example/global/interconnects/fra-1", peer_asn = 65010 }
      b = { region = "europe-west3", metro = "fra", edge_availability_domain = 2, interconnect = "https://www.googleapis.com/compute/v1/projects/net-example/global/interconnects/fra-2", peer_asn = 65010 }
      c = { region = "europe-west4", metro = "ams", edge_availability_domain = 1, interconnect = "https://www.googleapis.com/compute/v1/projects/net-example/global/interconnects/ams-1", peer_asn = 65010 }
      d = { region = "europe-west4", metro = "ams", edge_availability_domain = 2, interconnect = "https://www.googleapis.com/compute/v1/projects/net-example/global/interconnects/ams-2", peer_asn = 65010 }
    }
  }
  expect_failures = [check.the_connection_stays_in_one_region]

  assert {
    condition     = toset(keys(google_compute_router.this)) == toset(["europe-west3", "europe-west4"]) && length(google_compute_interconnect_attachment.this) == 4
    error_message = "Four attachments, a router in each region."
  }
  assert {
    condition     = alltrue([for router in google_compute_router.this : [for range in router.bgp[0].advertised_ip_ranges : range.range] == ["35.199.192.0/19"]])
    error_message = "Each router announces the ranges."
  }
}

run "multi_region_keys_may_leave_the_region" {
  command = plan
  variables {
    single_region = false
    availability  = "99.99"
    type          = "PARTNER"
    attachments = {
      a = { region = "europe-west3", metro = "fra", edge_availability_domain = 1 }
      b = { region = "europe-west3", metro = "fra", edge_availability_domain = 2 }
      c = { region = "europe-west4", metro = "ams", edge_availability_domain = 1 }
      d = { region = "europe-west4", metro = "ams", edge_availability_domain = 2 }
    }
  }

  assert {
    condition     = length(output.pairing_keys) == 4
    error_message = "Four attachments, and no warning."
  }
}

run "the_higher_tier_needs_global_routing" {
  command = plan
  variables {
    network      = { id = "projects/net-example/global/networks/ekm-a1", routing_mode = "REGIONAL" }
    availability = "99.99"
    attachments = {
      a = { region = "europe-west3", metro = "fra", edge_availability_domain = 1, interconnect = "https://www.googleapis.com/compute/v1/projects/net-example/global/interconnects/fra-1", peer_asn = 65010 }
      b = { region = "europe-west3", metro = "fra", edge_availability_domain = 2, interconnect = "https://www.googleapis.com/compute/v1/projects/net-example/global/interconnects/fra-2", peer_asn = 65010 }
      c = { region = "europe-west4", metro = "ams", edge_availability_domain = 1, interconnect = "https://www.googleapis.com/compute/v1/projects/net-example/global/interconnects/ams-1", peer_asn = 65010 }
      d = { region = "europe-west4", metro = "ams", edge_availability_domain = 2, interconnect = "https://www.googleapis.com/compute/v1/projects/net-example/global/interconnects/ams-2", peer_asn = 65010 }
    }
  }
  expect_failures = [google_compute_router.this["europe-west3"], google_compute_router.this["europe-west4"], check.the_connection_stays_in_one_region]
}

run "the_lower_tier_in_one_domain_is_refused" {
  command = plan
  variables {
    attachments = {
      a = { region = "europe-west3", metro = "fra", edge_availability_domain = 1, interconnect = "https://www.googleapis.com/compute/v1/projects/net-example/global/interconnects/fra-1", peer_asn = 65010 }
      b = { region = "europe-west3", metro = "fra", edge_availability_domain = 1, interconnect = "https://www.googleapis.com/compute/v1/projects/net-example/global/interconnects/fra-2", peer_asn = 65010 }
    }
  }
  expect_failures = [var.attachments]
}

run "the_higher_tier_in_one_region_is_refused" {
  command = plan
  variables {
    availability = "99.99"
    attachments = {
      a = { region = "europe-west3", metro = "fra", edge_availability_domain = 1, interconnect = "https://www.googleapis.com/compute/v1/projects/net-example/global/interconnects/fra-1", peer_asn = 65010 }
      b = { region = "europe-west3", metro = "fra", edge_availability_domain = 2, interconnect = "https://www.googleapis.com/compute/v1/projects/net-example/global/interconnects/fra-2", peer_asn = 65010 }
      c = { region = "europe-west3", metro = "ams", edge_availability_domain = 1, interconnect = "https://www.googleapis.com/compute/v1/projects/net-example/global/interconnects/ams-1", peer_asn = 65010 }
      d = { region = "europe-west3", metro = "ams", edge_availability_domain = 2, interconnect = "https://www.googleapis.com/compute/v1/projects/net-example/global/interconnects/ams-2", peer_asn = 65010 }
    }
  }
  expect_failures = [var.attachments, check.the_connection_stays_in_one_region]
}

run "two_attachments_on_one_interconnect_are_refused" {
  command = plan
  variables {
    attachments = {
      a = { region = "europe-west3", metro = "fra", edge_availability_domain = 1, interconnect = "https://www.googleapis.com/compute/v1/projects/net-example/global/interconnects/fra-1", peer_asn = 65010 }
      b = { region = "europe-west3", metro = "fra", edge_availability_domain = 2, interconnect = "https://www.googleapis.com/compute/v1/projects/net-example/global/interconnects/fra-1", peer_asn = 65010 }
    }
  }
  expect_failures = [var.attachments]
}

run "dedicated_without_an_interconnect_is_refused" {
  command = plan
  variables {
    attachments = {
      a = { region = "europe-west3", metro = "fra", edge_availability_domain = 1, interconnect = "https://www.googleapis.com/compute/v1/projects/net-example/global/interconnects/fra-1", peer_asn = 65010 }
      b = { region = "europe-west3", metro = "fra", edge_availability_domain = 2, peer_asn = 65010 }
    }
  }
  expect_failures = [var.attachments]
}

run "a_partner_sets_the_asn_itself" {
  command = plan
  variables {
    type = "PARTNER"
    attachments = {
      a = { region = "europe-west3", metro = "fra", edge_availability_domain = 1, peer_asn = 65010 }
      b = { region = "europe-west3", metro = "fra", edge_availability_domain = 2 }
    }
  }
  expect_failures = [var.attachments]
}

run "there_are_two_edge_availability_domains" {
  command = plan
  variables {
    type = "PARTNER"
    attachments = {
      a = { region = "europe-west3", metro = "fra", edge_availability_domain = 1 }
      b = { region = "europe-west3", metro = "fra", edge_availability_domain = 2 }
      c = { region = "europe-west4", metro = "ams", edge_availability_domain = 1 }
      d = { region = "europe-west4", metro = "ams", edge_availability_domain = 3 }
    }
    availability = "99.99"
  }
  expect_failures = [var.attachments, check.the_connection_stays_in_one_region]
}

run "a_partner_needs_googles_own_asn" {
  command = plan
  variables {
    type = "PARTNER"
    asn  = 64600
    attachments = {
      a = { region = "europe-west3", metro = "fra", edge_availability_domain = 1 }
      b = { region = "europe-west3", metro = "fra", edge_availability_domain = 2 }
    }
  }
  expect_failures = [var.asn]
}

run "a_public_asn_is_refused" {
  command = plan
  variables { asn = 15169 }
  expect_failures = [var.asn]
}

run "ranges_without_the_subnets_are_refused" {
  command = plan
  variables { advertised_groups = [] }
  expect_failures = [var.advertised_groups]
}

run "a_range_with_host_bits_is_refused" {
  command = plan
  variables { advertised_ranges = ["35.199.192.1/19"] }
  expect_failures = [var.advertised_ranges]
}

run "there_are_two_tiers" {
  command = plan
  variables { availability = "99.999" }
  expect_failures = [var.availability]
}

run "an_mtu_that_google_does_not_know_is_refused" {
  command = plan
  variables { mtu = 9000 }
  expect_failures = [var.mtu]
}

run "cross_cloud_is_refused" {
  command = plan
  variables { type = "CROSS_CLOUD" }
  expect_failures = [var.type]
}

run "a_name_that_google_refuses_is_refused" {
  command = plan
  variables { name = "EKM" }
  expect_failures = [var.name]
}
