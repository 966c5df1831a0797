mock_provider "google" {
  source          = "../../mocks"
  override_during = plan
}

variables {
  project_id        = "net-example"
  name              = "ekm-a1-fra"
  region            = "europe-west3"
  network           = "projects/net-example/global/networks/ekm-a1"
  peer_addresses    = ["203.0.113.1", "203.0.113.2"]
  advertised_ranges = ["35.199.192.0/19"]
  shared_secrets    = { a = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", b = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb", c = "cccccccccccccccccccccccccccccccc", d = "dddddddddddddddddddddddddddddddd" }
  tunnels = {
    a = { gateway_interface = 0, peer_interface = 0, google_bgp_address = "169.254.10.1", peer_bgp_address = "169.254.10.2", peer_asn = 65010 }
    b = { gateway_interface = 1, peer_interface = 1, google_bgp_address = "169.254.11.1", peer_bgp_address = "169.254.11.2", peer_asn = 65010, route_priority = 200 }
  }
}

run "the_tunnels_use_both_interfaces_and_bgp" {
  command = plan

  assert {
    condition     = toset([for tunnel in google_compute_vpn_tunnel.this : tunnel.vpn_gateway_interface]) == toset([0, 1])
    error_message = "Both of Google's interfaces have a tunnel."
  }
  assert {
    condition     = toset([for tunnel in google_compute_vpn_tunnel.this : tunnel.peer_external_gateway_interface]) == toset([for interface in google_compute_external_vpn_gateway.peer.interface : interface.id])
    error_message = "Each of the peer's interfaces has a tunnel."
  }
  assert {
    condition     = alltrue([for tunnel in google_compute_vpn_tunnel.this : tunnel.ike_version == 2 && tunnel.router == google_compute_router.this.id])
    error_message = "IKEv2, and routes by BGP."
  }
  assert {
    condition     = google_compute_external_vpn_gateway.peer.redundancy_type == "TWO_IPS_REDUNDANCY"
    error_message = "The redundancy follows from the number of addresses."
  }
  assert {
    condition     = google_compute_router_interface.this["a"].ip_range == "169.254.10.1/30" && google_compute_router_peer.this["a"].peer_ip_address == "169.254.10.2"
    error_message = "The session's addresses are those of its /30."
  }
  assert {
    condition     = google_compute_router_peer.this["a"].advertised_route_priority == 100 && google_compute_router_peer.this["b"].advertised_route_priority == 200
    error_message = "The MED is the tunnel's."
  }
}

run "the_router_announces_subnets_and_ranges_and_no_session_overrides_it" {
  command = plan

  assert {
    condition     = google_compute_router.this.bgp[0].advertise_mode == "CUSTOM" && google_compute_router.this.bgp[0].advertised_groups == tolist(["ALL_SUBNETS"])
    error_message = "Subnets are announced beside the ranges."
  }
  assert {
    condition     = [for range in google_compute_router.this.bgp[0].advertised_ip_ranges : range.range] == ["35.199.192.0/19"] && output.advertised_ranges == ["35.199.192.0/19"]
    error_message = "The ranges are announced."
  }
  assert {
    condition     = alltrue([for peer in google_compute_router_peer.this : peer.advertise_mode == null && length(peer.advertised_ip_ranges) == 0])
    error_message = "A session with a list of its own would announce nothing else."
  }
}

run "secrets_are_in_no_plan" {
  command = plan

  assert {
    condition     = alltrue([for tunnel in google_compute_vpn_tunnel.this : tunnel.shared_secret == null && tunnel.shared_secret_wo == null && tunnel.shared_secret_wo_version == "1"])
    error_message = "The secret is write-only."
  }
}

run "one_peer_address_takes_two_tunnels" {
  command = plan
  variables {
    peer_addresses = ["203.0.113.1"]
    tunnels = {
      a = { gateway_interface = 0, peer_interface = 0, google_bgp_address = "169.254.10.1", peer_bgp_address = "169.254.10.2", peer_asn = 65010 }
      b = { gateway_interface = 1, peer_interface = 0, google_bgp_address = "169.254.11.1", peer_bgp_address = "169.254.11.2", peer_asn = 65010 }
    }
  }

  assert {
    condition     = google_compute_external_vpn_gateway.peer.redundancy_type == "SINGLE_IP_INTERNALLY_REDUNDANT"
    error_message = "One address is called so."
  }
}

run "one_interface_alone_is_refused" {
  command = plan
  variables {
    peer_addresses = ["203.0.113.1"]
    tunnels = {
      a = { gateway_interface = 0, peer_interface = 0, google_bgp_address = "169.254.10.1", peer_bgp_address = "169.254.10.2", peer_asn = 65010 }
      b = { gateway_interface = 0, peer_interface = 0, google_bgp_address = "169.254.11.1", peer_bgp_address = "169.254.11.2", peer_asn = 65010 }
    }
  }
  expect_failures = [var.tunnels]
}

run "a_peer_address_without_a_tunnel_is_refused" {
  command = plan
  variables {
    tunnels = {
      a = { gateway_interface = 0, peer_interface = 0, google_bgp_address = "169.254.10.1", peer_bgp_address = "169.254.10.2", peer_asn = 65010 }
      b = { gateway_interface = 1, peer_interface = 0, google_bgp_address = "169.254.11.1", peer_bgp_address = "169.254.11.2", peer_asn = 65010 }
    }
  }
  expect_failures = [var.tunnels]
}

run "bgp_addresses_of_two_networks_are_refused" {
  command = plan
  variables {
    tunnels = {
      a = { gateway_interface = 0, peer_interface = 0, google_bgp_address = "169.254.10.1", peer_bgp_address = "169.254.12.2", peer_asn = 65010 }
      b = { gateway_interface = 1, peer_interface = 1, google_bgp_address = "169.254.11.1", peer_bgp_address = "169.254.11.2", peer_asn = 65010 }
    }
  }
  expect_failures = [var.tunnels]
}

run "two_sessions_in_one_network_are_refused" {
  command = plan
  variables {
    tunnels = {
      a = { gateway_interface = 0, peer_interface = 0, google_bgp_address = "169.254.10.1", peer_bgp_address = "169.254.10.2", peer_asn = 65010 }
      b = { gateway_interface = 1, peer_interface = 1, google_bgp_address = "169.254.10.2", peer_bgp_address = "169.254.10.1", peer_asn = 65010 }
    }
  }
  expect_failures = [var.tunnels]
}

run "the_site_has_another_asn_than_google" {
  command = plan
  variables { asn = 65010 }
  expect_failures = [var.tunnels]
}

run "one_site_has_one_asn" {
  command = plan
  variables {
    tunnels = {
      a = { gateway_interface = 0, peer_interface = 0, google_bgp_address = "169.254.10.1", peer_bgp_address = "169.254.10.2", peer_asn = 65010 }
      b = { gateway_interface = 1, peer_interface = 1, google_bgp_address = "169.254.11.1", peer_bgp_address = "169.254.11.2", peer_asn = 65011 }
    }
  }
  expect_failures = [var.tunnels]
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

run "a_public_asn_is_refused" {
  command = plan
  variables { asn = 15169 }
  expect_failures = [var.asn]
}

run "three_peer_addresses_are_refused" {
  command = plan
  variables {
    peer_addresses = ["203.0.113.1", "203.0.113.2", "203.0.113.3"]
    tunnels = {
      a = { gateway_interface = 0, peer_interface = 0, google_bgp_address = "169.254.10.1", peer_bgp_address = "169.254.10.2", peer_asn = 65010 }
      b = { gateway_interface = 1, peer_interface = 1, google_bgp_address = "169.254.11.1", peer_bgp_address = "169.254.11.2", peer_asn = 65010 }
      c = { gateway_interface = 1, peer_interface = 2, google_bgp_address = "169.254.12.1", peer_bgp_address = "169.254.12.2", peer_asn = 65010 }
    }
  }
  expect_failures = [var.peer_addresses]
}

run "a_peer_is_named_by_address" {
  command = plan
  variables { peer_addresses = ["vpn-1.example.com", "vpn-2.example.com"] }
  expect_failures = [var.peer_addresses]
}

run "a_short_secret_is_refused" {
  command = plan
  variables { shared_secrets = { a = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", b = "secret" } }
  expect_failures = [var.shared_secrets]
}

run "a_name_that_google_refuses_is_refused" {
  command = plan
  variables { name = "EKM" }
  expect_failures = [var.name]
}
