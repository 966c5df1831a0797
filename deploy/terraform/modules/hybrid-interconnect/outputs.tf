output "pairing_keys" {
  description = "PARTNER: what the service provider needs for each attachment."
  value       = var.type == "PARTNER" ? { for name, attachment in google_compute_interconnect_attachment.this : name => attachment.pairing_key } : {}
}

output "site_addresses" {
  description = "DEDICATED: the address that the site's router has on each attachment."
  value       = var.type == "DEDICATED" ? { for name, attachment in google_compute_interconnect_attachment.this : name => attachment.customer_router_ip_address } : {}
}

output "advertised_ranges" {
  description = "What the site learns by BGP besides the subnets, and has to route back; the same from each router."
  value       = distinct(flatten([for router in google_compute_router.this : [for range in router.bgp[0].advertised_ip_ranges : range.range]]))
}
