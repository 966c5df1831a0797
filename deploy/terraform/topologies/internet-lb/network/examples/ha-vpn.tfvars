# Two sites, each with an HA VPN in the region that is closest to it.
vpc_project = { id = "net-example", number = "210987654321" }
suffix      = "a1"
hostname    = "ekm.example.com"
dns_zone    = { project_id = "dns-example", name = "example-com" }

sites = {
  fra = { zone = "europe-west3-a", addresses = ["10.20.0.11", "10.20.0.12", "10.20.0.13"] }
  ams = { zone = "europe-west4-a", addresses = ["10.30.0.11", "10.30.0.12", "10.30.0.13"] }
}

# And, not in a file: export TF_VAR_vpn_shared_secrets='{"fra":{"a":"…","b":"…"},"ams":{"a":"…","b":"…"}}'
vpn = {
  fra = {
    region         = "europe-west3"
    peer_addresses = ["203.0.113.10", "198.51.100.10"]
    tunnels = {
      a = { gateway_interface = 0, peer_interface = 0, google_bgp_address = "169.254.10.1", peer_bgp_address = "169.254.10.2", peer_asn = 65010 }
      b = { gateway_interface = 1, peer_interface = 1, google_bgp_address = "169.254.10.5", peer_bgp_address = "169.254.10.6", peer_asn = 65010 }
    }
  }
  ams = {
    region         = "europe-west4"
    peer_addresses = ["203.0.113.11", "198.51.100.11"]
    tunnels = {
      a = { gateway_interface = 0, peer_interface = 0, google_bgp_address = "169.254.11.1", peer_bgp_address = "169.254.11.2", peer_asn = 65020 }
      b = { gateway_interface = 1, peer_interface = 1, google_bgp_address = "169.254.11.5", peer_bgp_address = "169.254.11.6", peer_asn = 65020 }
    }
  }
}
