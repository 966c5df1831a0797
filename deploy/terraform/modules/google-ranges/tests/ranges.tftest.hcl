run "the_ranges_are_the_ones_that_google_publishes" {
  command = plan

  assert {
    condition     = output.kms == tolist(["35.199.192.0/19"]) || output.kms == ["35.199.192.0/19"]
    error_message = "Cloud KMS calls from 35.199.192.0/19."
  }
  assert {
    condition     = toset(output.load_balancers) == toset(["35.191.0.0/16", "130.211.0.0/22"])
    error_message = "Proxies and health checks come from 35.191.0.0/16 and 130.211.0.0/22."
  }
  assert {
    condition     = alltrue([for range in concat(output.kms, output.load_balancers, output.private_google_access) : cidrsubnet(range, 0, 0) == range])
    error_message = "A range has host bits."
  }
}
