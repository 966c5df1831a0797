# Two sites, four attachments of a Dedicated Interconnect in two metros and two regions: the 99.99 tier.
vpc_project = { id = "net-example", number = "210987654321" }
suffix      = "a1"
hostname    = "ekm.example.com"

sites = {
  fra = { zone = "europe-west3-a", addresses = ["10.20.0.11", "10.20.0.12", "10.20.0.13"] }
  ams = { zone = "europe-west4-a", addresses = ["10.30.0.11", "10.30.0.12", "10.30.0.13"] }
}

interconnect = {
  type         = "DEDICATED"
  availability = "99.99"
  attachments = {
    fra-1 = { region = "europe-west3", metro = "fra", edge_availability_domain = 1, interconnect = "https://www.googleapis.com/compute/v1/projects/net-example/global/interconnects/fra-1", peer_asn = 65010, vlan_tag = 101, bandwidth = "BPS_1G" }
    fra-2 = { region = "europe-west3", metro = "fra", edge_availability_domain = 2, interconnect = "https://www.googleapis.com/compute/v1/projects/net-example/global/interconnects/fra-2", peer_asn = 65010, vlan_tag = 101, bandwidth = "BPS_1G" }
    ams-1 = { region = "europe-west4", metro = "ams", edge_availability_domain = 1, interconnect = "https://www.googleapis.com/compute/v1/projects/net-example/global/interconnects/ams-1", peer_asn = 65020, vlan_tag = 101, bandwidth = "BPS_1G" }
    ams-2 = { region = "europe-west4", metro = "ams", edge_availability_domain = 2, interconnect = "https://www.googleapis.com/compute/v1/projects/net-example/global/interconnects/ams-2", peer_asn = 65020, vlan_tag = 101, bandwidth = "BPS_1G" }
  }
}
