# Run with one of the examples: terraform test -var-file=examples/NAME.tfvars

mock_provider "google" {
  source          = "../../../mocks"
  override_during = plan
}

variables {
  vpn_shared_secrets = {
    fra = { a = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", b = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb" }
    ber = { a = "cccccccccccccccccccccccccccccccc", b = "dddddddddddddddddddddddddddddddd" }
    ams = { a = "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee", b = "ffffffffffffffffffffffffffffffff" }
  }
}

run "a_suffix_that_names_cannot_have_is_refused" {
  command = plan
  variables { suffix = "Prod_1" }
  expect_failures = [var.suffix]
}

run "no_way_to_the_sites_is_refused" {
  command = plan
  variables {
    vpn          = {}
    interconnect = null
  }
  expect_failures = [var.vpn]
}

run "two_ways_to_the_sites_are_refused" {
  command = plan
  variables {
    vpn = {
      fra = {
        region         = "europe-west3"
        peer_addresses = ["203.0.113.10"]
        tunnels = {
          a = { gateway_interface = 0, peer_interface = 0, google_bgp_address = "169.254.10.1", peer_bgp_address = "169.254.10.2", peer_asn = 65010 }
          b = { gateway_interface = 1, peer_interface = 0, google_bgp_address = "169.254.10.5", peer_bgp_address = "169.254.10.6", peer_asn = 65010 }
        }
      }
    }
    interconnect = {
      type         = "PARTNER"
      availability = "99.9"
      attachments = {
        a = { region = "europe-west3", metro = "fra", edge_availability_domain = 1 }
        b = { region = "europe-west3", metro = "fra", edge_availability_domain = 2 }
      }
    }
  }
  expect_failures = [var.vpn]
}

run "a_sites_name_is_short" {
  command = plan
  variables {
    sites = {
      frankfurt-am-main = { zone = "europe-west3-a", addresses = ["10.20.0.11", "10.20.0.12"] }
      ams               = { zone = "europe-west4-a", addresses = ["10.30.0.11", "10.30.0.12"] }
    }
  }
  expect_failures = [var.sites]
}
