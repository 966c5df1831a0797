output "gateway_addresses" {
  description = "Google's two public addresses: what the site's VPN devices connect to."
  value       = [for interface in google_compute_ha_vpn_gateway.this.vpn_interfaces : interface.ip_address]
}

output "advertised_ranges" {
  description = "What the site learns by BGP besides the subnets, and has to route back."
  value       = [for range in google_compute_router.this.bgp[0].advertised_ip_ranges : range.range]
}

output "tunnels" {
  description = "The tunnels' names."
  value       = [for tunnel in google_compute_vpn_tunnel.this : tunnel.name]
}
