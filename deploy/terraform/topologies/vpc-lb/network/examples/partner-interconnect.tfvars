# Two sites behind two attachments of a Partner Interconnect; the partner makes the BGP sessions.
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

interconnect = {
  type         = "PARTNER"
  availability = "99.9"
  attachments = {
    a = { region = "europe-west3", metro = "fra", edge_availability_domain = 1 }
    b = { region = "europe-west3", metro = "fra", edge_availability_domain = 2 }
  }
}
