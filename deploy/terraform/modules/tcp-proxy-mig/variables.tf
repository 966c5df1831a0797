variable "backup_frontends" {
  description = "Frontends of another site that nginx tries when all of this one's are gone. Usually none: the internal load balancer changes sites, and sees better why."
  type        = list(string)
  default     = []

  validation {
    condition     = length(setintersection(toset(var.backup_frontends), toset(var.frontends))) == 0
    error_message = "An address is among frontends and among backup_frontends; it can be one of them."
  }
  validation {
    condition     = alltrue([for address in var.backup_frontends : can(cidrhost("${address}/32", 0))])
    error_message = "A frontend's address is an IPv4 address that the tunnels route to, such as 10.30.0.11: nginx looks up names only when it starts."
  }
}

variable "boot_image" {
  description = "Container-Optimized OS. Pin an image of an LTS milestone for production."
  type        = string
  default     = "projects/cos-cloud/global/images/family/cos-stable"
  nullable    = false

  validation {
    condition     = strcontains(var.boot_image, "/cos-cloud/") || strcontains(var.boot_image, "/cos-")
    error_message = "boot_image has to be a Container-Optimized OS image: the machines are set up with its tools."
  }
}

variable "connect_timeout_ms" {
  description = "How long a connection to a frontend may take before the next one is tried: twice the round trip to the site at least."
  type        = number
  default     = 40

  validation {
    condition     = var.connect_timeout_ms >= 5 && var.connect_timeout_ms <= 70
    error_message = "connect_timeout_ms is between 5 and 70: Cloud KMS waits 150 ms for everything, and a second frontend has to fit in."
  }
}

variable "frontend_port" {
  description = "The port where the frontends speak TLS; /readyz is asked there, too."
  type        = number
  default     = 8443

  validation {
    condition     = var.frontend_port >= 1 && var.frontend_port <= 65535
    error_message = "frontend_port is the port of [server] listen in the EKM's configuration, between 1 and 65535."
  }
}

variable "frontends" {
  description = "The addresses of the site's EKM frontends."
  type        = list(string)

  validation {
    condition     = length(var.frontends) >= 2
    error_message = "A site needs two frontends at least, three to be able to update one while another one fails."
  }
  validation {
    condition     = alltrue([for address in var.frontends : can(cidrhost("${address}/32", 0))])
    error_message = "A frontend's address is an IPv4 address that the tunnels route to, such as 10.20.0.11: nginx looks up names only when it starts."
  }
}

variable "image" {
  description = "The nginx container image in Artifact Registry, by digest."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9-]+-docker\\.pkg\\.dev/.+@sha256:[0-9a-f]{64}$", var.image))
    error_message = "image is an image in Artifact Registry by its digest, REGION-docker.pkg.dev/PROJECT/REPOSITORY/nginx@sha256:…: the machines have no internet access, and a tag could change under them."
  }
}

variable "instances" {
  description = "How many machines."
  type        = number
  default     = 3

  validation {
    condition     = var.instances >= 3
    error_message = "Three proxies at least: one may be updated while another one fails."
  }
}

variable "machine_type" {
  description = "The machines' type."
  type        = string
  default     = "e2-standard-2"
}

variable "name" {
  description = "Prefix of all names; one for each site."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,29}[a-z0-9]$", var.name))
    error_message = "The name has lower-case letters, digits and hyphens, begins with a letter, and has between 2 and 31 characters."
  }
}

variable "port" {
  description = "Where nginx listens: the port of the load balancer's forwarding rule, which passes packets through as they are."
  type        = number
  default     = 443

  validation {
    condition     = var.port >= 1 && var.port <= 65535 && var.port != 8080
    error_message = "port is between 1 and 65535 and not 8080, where nginx answers health checks."
  }
}

variable "project_id" {
  description = "The project of the VPC network."
  type        = string
}

variable "proxy_protocol" {
  description = "Tell the site who calls, by PROXY protocol. The EKM does not read it; only for a load balancer of your own at the site that does, and takes it off."
  type        = bool
  default     = false
}

variable "region" {
  description = "The region of the EKM connection."
  type        = string
}

variable "service_account" {
  description = "The e-mail address of the machines' service account. It has to be able to pull the image and to write logs."
  type        = string
}

variable "subnetwork" {
  description = "The subnetwork's id, with Private Google Access."
  type        = string
}

variable "tag" {
  description = "The network tag that firewall rules name."
  type        = string
  default     = "ekm-proxy"
}

variable "worker_connections" {
  description = "For each nginx worker; a session needs two."
  type        = number
  default     = 16384

  validation {
    condition     = var.worker_connections >= 512 && var.worker_connections <= 32768
    error_message = "worker_connections is between 512 and 32768: a worker may have 65536 open files."
  }
}

variable "zones" {
  description = "The zones of the machines."
  type        = list(string)

  validation {
    condition     = length(distinct(var.zones)) >= 2 && length(distinct(var.zones)) == length(var.zones)
    error_message = "Name two different zones at least, best three: one may fail."
  }
  validation {
    condition     = alltrue([for zone in var.zones : startswith(zone, "${var.region}-")])
    error_message = "A zone is outside the region of the group."
  }
}
