output "instance_group" {
  description = "The group, as a backend service names it."
  value       = google_compute_region_instance_group_manager.this.instance_group
}

output "nginx_conf" {
  description = "The configuration as the machines get it, to be tried with nginx -t."
  value       = local.nginx_conf
}

output "health_port" {
  description = "Where the machines answer health checks: /livez for themselves, /readyz for the site."
  value       = local.health_port
}
