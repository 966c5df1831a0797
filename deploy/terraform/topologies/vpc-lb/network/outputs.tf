output "for_kms" {
  description = "For the kms stage: terraform output -json for_kms > ../kms/network.auto.tfvars.json"
  value = {
    network = {
      suffix                    = var.suffix
      location                  = module.endpoint.location
      hostname                  = var.hostname
      service_directory_service = module.endpoint.service
      key_projects              = keys(var.key_projects)
    }
  }
}

output "hybrid" {
  description = "What the sites need: addresses of the VPN gateways, pairing keys or addresses of the attachments, and the ranges to route back."
  value = {
    vpn_gateway_addresses  = { for site, vpn in module.vpn : site => vpn.gateway_addresses }
    interconnect_pairing   = var.interconnect == null ? {} : module.interconnect[0].pairing_keys
    interconnect_addresses = var.interconnect == null ? {} : module.interconnect[0].site_addresses
    advertised_ranges      = concat([var.subnet_range], local.advertised_ranges)
  }
}

output "nginx_conf" {
  description = "The proxies' configuration by site, to be tried with nginx -t."
  value       = { for site, proxy in module.proxies : site => proxy.nginx_conf }
}

output "health_command" {
  description = "Shows which proxies the load balancer finds ready."
  value       = module.load_balancer.health_command
}
