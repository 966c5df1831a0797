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
    condition     = alltrue([for ranges in concat([for vpn in module.vpn : vpn.advertised_ranges], [for interconnect in module.interconnect : interconnect.advertised_ranges]) : join(" ", sort(ranges)) == join(" ", sort(concat(module.google_ranges.load_balancers, var.private_google_access ? module.google_ranges.private_google_access : [])))])
    error_message = "Every router announces the ranges that call the sites, and no others."
  }
  assert {
    condition     = length(module.vpn) + length(module.interconnect) > 0 && join(" ", sort(output.hybrid.advertised_ranges)) == join(" ", sort(concat(module.google_ranges.load_balancers, var.private_google_access ? module.google_ranges.private_google_access : [])))
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

run "the_host_name_points_to_the_load_balancer" {
  command = plan

  assert {
    condition     = alltrue([for record in google_dns_record_set.ekm : record.name == "${var.hostname}." && record.type == "A" && record.rrdatas == tolist([module.load_balancer.address])])
    error_message = "An A record with its address."
  }
  assert {
    condition     = length(google_dns_record_set.ekm) == (var.dns_zone == null ? 0 : 1) && output.address == module.load_balancer.address
    error_message = "Where there is a zone; else it is for the operator."
  }
  assert {
    condition     = output.for_kms.network.hostname == var.hostname && output.for_kms.network.suffix == var.suffix
    error_message = "Host name and suffix are handed on."
  }
}
