variable "connections_per_frontend" {
  description = "How many connections a frontend should have before the next site gets some; below the EKM's limits.max_connections."
  type        = number
  default     = 1500

  validation {
    condition     = var.connections_per_frontend >= 1
    error_message = "connections_per_frontend is a number of connections, 1 at least."
  }
}

variable "health_path" {
  description = "What each frontend is asked: /readyz, or /readyz?shard=NAME if these frontends serve one shard only."
  type        = string
  default     = "/readyz"

  validation {
    condition     = can(regex("^/readyz(\\?shard=[a-z][a-z0-9-]*)?$", var.health_path))
    error_message = "A load balancer asks /readyz: it means that real wraps work and no drain has begun. /livez only means that the process answers, and /healthz does not know of drains and fails when one shard does; the port that serves has neither."
  }
}

variable "idle_timeout_s" {
  description = "After how many silent seconds the load balancer closes a connection."
  type        = number
  default     = 60

  validation {
    condition     = var.idle_timeout_s >= 10 && var.idle_timeout_s < 75
    error_message = "The load balancer has to be the one that closes, so its idle time-out is shorter than the EKM's limits.idle_timeout_s (75): else a request meets a connection that is just closing."
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
  description = "The VPC network that reaches the sites: its id, and its routing_mode."
  type = object({
    id           = string
    routing_mode = string
  })
}

variable "port" {
  description = "The port where the frontends speak TLS."
  type        = number
  default     = 8443

  validation {
    condition     = var.port >= 1 && var.port <= 65535
    error_message = "port is between 1 and 65535."
  }
}

variable "project_id" {
  description = "The project of the VPC network and the load balancer."
  type        = string
}

variable "sites" {
  description = "On-premises sites by name: a zone of the region that is closest, and the addresses of the site's EKM frontends."
  type = map(object({
    zone      = string
    addresses = set(string)
  }))

  validation {
    condition     = length(var.sites) >= 2
    error_message = "Name two sites at least: a multi-region key has to survive the loss of one."
  }
  validation {
    condition     = alltrue([for site in values(var.sites) : length(site.addresses) >= 2])
    error_message = "Each site needs two frontends at least, three to be able to update one while another one fails."
  }
  validation {
    condition     = alltrue(flatten([for site in values(var.sites) : [for address in site.addresses : can(cidrhost("${address}/32", 0))]]))
    error_message = "A frontend's address is an IPv4 address that the tunnels route to, such as 10.20.0.11."
  }
  validation {
    condition     = length(distinct(flatten([for site in values(var.sites) : tolist(site.addresses)]))) == length(flatten([for site in values(var.sites) : tolist(site.addresses)]))
    error_message = "Two sites name the same address. With one address at several sites (anycast) the load balancer could not tell them apart."
  }
  validation {
    condition     = length(distinct([for site in values(var.sites) : site.zone])) == length(var.sites)
    error_message = "Two sites have the same zone. Give each the zone that is closest to it: a zone's failure must not take both."
  }
  validation {
    condition     = alltrue([for site in values(var.sites) : can(regex("^[a-z]+-[a-z]+[0-9]+-[a-z]$", site.zone))])
    error_message = "A zone is a region's name and a letter, such as europe-west3-a."
  }
}
