# Two sites, each with an HA VPN; traffic goes to the first one while it is ready.
vpc_project  = { id = "net-example", number = "210987654321" }
suffix       = "a1"
hostname     = "ekm.example.com"
region       = "europe-west3"
key_projects = { keys-example = "123456789012" }

subnet_range = "10.128.10.0/26"
address      = "10.128.10.10"
zones        = ["europe-west3-a", "europe-west3-b", "europe-west3-c"]
sites = {
  fra = {
    backup    = false
    frontends = ["10.20.0.11", "10.20.0.12", "10.20.0.13"]
    image     = "europe-docker.pkg.dev/net-example/ekm/nginx@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
  }
  ber = {
    backup    = true
    frontends = ["10.30.0.11", "10.30.0.12", "10.30.0.13"]
    image     = "europe-docker.pkg.dev/net-example/ekm/nginx@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
  }
}

# And, not in a file: export TF_VAR_vpn_shared_secrets='{"fra":{"a":"…","b":"…"},"ber":{"a":"…","b":"…"}}'
vpn = {
  fra = {
    region         = "europe-west3"
    peer_addresses = ["203.0.113.10", "198.51.100.10"]
    tunnels = {
      a = { gateway_interface = 0, peer_interface = 0, google_bgp_address = "169.254.10.1", peer_bgp_address = "169.254.10.2", peer_asn = 65010 }
      b = { gateway_interface = 1, peer_interface = 1, google_bgp_address = "169.254.10.5", peer_bgp_address = "169.254.10.6", peer_asn = 65010 }
    }
  }
  ber = {
    region         = "europe-west3"
    peer_addresses = ["203.0.113.11", "198.51.100.11"]
    tunnels = {
      a = { gateway_interface = 0, peer_interface = 0, google_bgp_address = "169.254.11.1", peer_bgp_address = "169.254.11.2", peer_asn = 65020 }
      b = { gateway_interface = 1, peer_interface = 1, google_bgp_address = "169.254.11.5", peer_bgp_address = "169.254.11.6", peer_asn = 65020 }
    }
  }
}
