# The ranges that Google's services call from. They stand here and nowhere else, so that what a firewall admits and what BGP announces
# cannot differ. A change by Google is a change here.

terraform {
  required_version = ">= 1.11"
}

output "kms" {
  description = "Cloud KMS calling through Service Directory; private uptime checks come from here too."
  value       = ["35.199.192.0/19"]
}

output "load_balancers" {
  description = "Google Front Ends that proxy to hybrid endpoints, and the probes of health checks."
  value       = ["35.191.0.0/16", "130.211.0.0/22"]
}

output "private_google_access" {
  description = "private.googleapis.com: how an EKM without internet access fetches Google's token keys."
  value       = ["199.36.153.8/30"]
}
