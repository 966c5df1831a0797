# One site, two attachments of a Dedicated Interconnect: the 99.9 tier, which stays in the keys' region.
vpc_project  = { id = "net-example", number = "210987654321" }
suffix       = "a1"
hostname     = "ekm.example.com"
region       = "europe-west3"
key_projects = { keys-example = "123456789012" }
endpoint     = { address = "10.20.0.10", port = 443 }

# The EKM has no internet access and fetches Google's token keys this way too.
private_google_access = true

interconnect = {
  type         = "DEDICATED"
  availability = "99.9"
  attachments = {
    a = { region = "europe-west3", metro = "fra", edge_availability_domain = 1, interconnect = "https://www.googleapis.com/compute/v1/projects/net-example/global/interconnects/fra-1", peer_asn = 65010, vlan_tag = 101, bandwidth = "BPS_1G" }
    b = { region = "europe-west3", metro = "fra", edge_availability_domain = 2, interconnect = "https://www.googleapis.com/compute/v1/projects/net-example/global/interconnects/fra-2", peer_asn = 65010, vlan_tag = 101, bandwidth = "BPS_1G" }
  }
}
