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

run "the_sites_learn_the_way_back" {
  command = plan

  assert {
    condition     = alltrue([for ranges in concat([for vpn in module.vpn : vpn.advertised_ranges], [for interconnect in module.interconnect : interconnect.advertised_ranges]) : join(" ", sort(ranges)) == join(" ", sort(var.private_google_access ? module.google_ranges.private_google_access : []))])
    error_message = "Every router announces the ranges that call the sites, and no others."
  }
  assert {
    condition     = length(module.vpn) + length(module.interconnect) > 0 && join(" ", sort(output.hybrid.advertised_ranges)) == join(" ", sort(concat([var.subnet_range], var.private_google_access ? module.google_ranges.private_google_access : [])))
    error_message = "There is a way, and the sites are told what to route back."
  }
  assert {
    condition     = google_compute_network.ekm.routing_mode == "GLOBAL" && !google_compute_network.ekm.auto_create_subnetworks
    error_message = "Routes of all regions, and no subnets by themselves."
  }
  assert {
    condition     = alltrue([for service in google_project_service.vpc : !service.disable_on_destroy])
    error_message = "What else is in the project keeps its APIs."
  }
}

run "service_directory_is_in_the_keys_region_and_the_networks_own_project" {
  command = plan

  assert {
    condition     = module.endpoint.location == var.region && output.for_kms.network.location == var.region
    error_message = "Namespace, connection and keys are in one region."
  }
  assert {
    condition     = module.endpoint.endpoint.network == "projects/${var.vpc_project.number}/locations/global/networks/${google_compute_network.ekm.name}"
    error_message = "The endpoint is in the network that owns the tunnels."
  }
  assert {
    condition     = google_compute_network.ekm.name == "ekm-${var.suffix}"
    error_message = "The name tells this deployment from others."
  }
  assert {
    condition     = module.endpoint.endpoint.address == module.load_balancer.address && module.endpoint.endpoint.port == module.load_balancer.port
    error_message = "Cloud KMS connects to the internal load balancer."
  }
}

run "the_proxies_are_where_the_load_balancer_is" {
  command = plan

  assert {
    condition     = google_compute_subnetwork.proxies.region == var.region && google_compute_subnetwork.proxies.private_ip_google_access
    error_message = "In the keys' region; images and logs need Private Google Access."
  }
  assert {
    condition     = alltrue([for site, proxy in module.proxies : can(regex("listen ${module.load_balancer.port}[ ;]", proxy.nginx_conf))])
    error_message = "nginx listens on the load balancer's port: packets pass through as they are."
  }
  assert {
    condition = alltrue(flatten([
      for site, proxy in module.proxies : [
        for other, its in var.sites : [for address in its.frontends : strcontains(proxy.nginx_conf, "server ${address}:") == (other == site)]
      ]
    ]))
    error_message = "The proxies of a site lead to that site alone: else its health check would tell of another one."
  }
  assert {
    condition     = keys(google_project_iam_member.image) == ["net-example"] && google_project_iam_member.image["net-example"].role == "roles/artifactregistry.reader"
    error_message = "The machines may pull the image."
  }
}

run "the_kms_stage_gets_what_it_needs" {
  command = plan

  assert {
    condition     = output.for_kms.network.service_directory_service == module.endpoint.service && output.for_kms.network.hostname == var.hostname && output.for_kms.network.suffix == var.suffix
    error_message = "Service, host name and suffix are handed on."
  }
  assert {
    condition     = toset(output.for_kms.network.key_projects) == toset(keys(var.key_projects))
    error_message = "The projects whose agents have access."
  }
}
