variable "address" {
  description = "The load balancer's address, in the subnetwork; without one Google chooses."
  type        = string
  default     = null
}

variable "backends" {
  description = "The proxies' instance groups by site. failover = true: gets traffic when the others are gone."
  type = map(object({
    group    = string
    failover = bool
  }))

  validation {
    condition     = anytrue([for backend in values(var.backends) : !backend.failover])
    error_message = "One site has to be the primary: failover = false."
  }
  validation {
    condition     = anytrue([for backend in values(var.backends) : backend.failover])
    error_message = "One site has to be the backup: failover = true. Without a second site the topology direct does the same with less."
  }
}

variable "failover_ratio" {
  description = "At which share of ready primary proxies traffic goes to the backup site. 0: when none is left. Traffic comes back by itself, without delay."
  type        = number
  default     = 0

  validation {
    condition     = var.failover_ratio >= 0 && var.failover_ratio < 1
    error_message = "failover_ratio is a share from 0 to below 1; with 1 a single proxy that restarts would change sites."
  }
}

variable "health_path" {
  description = "What is asked on health_port: the check that goes through to a frontend."
  type        = string
  default     = "/readyz"

  validation {
    condition     = var.health_path == "/readyz"
    error_message = "The load balancer asks the proxies' /readyz, which goes through to a frontend at the site. /livez is the proxy alone: with it nothing would fail over when the site is gone."
  }
}

variable "health_port" {
  description = "The port where the proxies answer health checks."
  type        = number
  default     = 8080

  validation {
    condition     = var.health_port != var.port
    error_message = "A check on the traffic's own port would only show that nginx listens. Take the proxies' health_port."
  }
}

variable "name" {
  description = "Prefix of all names."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,39}[a-z0-9]$", var.name))
    error_message = "The name has lower-case letters, digits and hyphens, begins with a letter, and has between 2 and 41 characters."
  }
}

variable "network" {
  description = "The VPC network's id."
  type        = string
}

variable "port" {
  description = "The port of the address, and of the proxies: packets pass through as they are."
  type        = number
  default     = 443
}

variable "project_id" {
  description = "The project of the VPC network."
  type        = string
}

variable "region" {
  description = "The region of the EKM connection."
  type        = string
}

variable "subnetwork" {
  description = "The subnetwork's id."
  type        = string
}

variable "tag" {
  description = "The proxies' network tag."
  type        = string
  default     = "ekm-proxy"
}
