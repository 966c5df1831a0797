# One site, two VPN devices with two tunnels, both in use.
vpc_project  = { id = "net-example", number = "210987654321" }
suffix       = "a1"
hostname     = "ekm.example.com"
region       = "europe-west3"
key_projects = { keys-example = "123456789012" }
endpoint     = { address = "10.20.0.10", port = 443 }

# And, not in a file: export TF_VAR_vpn_shared_secrets='{"fra":{"a":"…","b":"…"}}'
vpn = {
  fra = {
    region         = "europe-west3"
    peer_addresses = ["203.0.113.10", "198.51.100.10"]
    tunnels = {
      a = { gateway_interface = 0, peer_interface = 0, google_bgp_address = "169.254.10.1", peer_bgp_address = "169.254.10.2", peer_asn = 65010 }
      b = { gateway_interface = 1, peer_interface = 1, google_bgp_address = "169.254.10.5", peer_bgp_address = "169.254.10.6", peer_asn = 65010 }
    }
  }
}
