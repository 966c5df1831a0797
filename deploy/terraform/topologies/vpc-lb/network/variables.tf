variable "address" {
  description = "The load balancer's address, in subnet_range; without one Google chooses."
  type        = string
  default     = null

  validation {
    condition     = var.address == null || try(cidrhost("${var.address}/${split("/", var.subnet_range)[1]}", 0) == cidrhost(var.subnet_range, 0), false)
    error_message = "The load balancer's address has to be in subnet_range."
  }
}

variable "failover_ratio" {
  description = "At which share of ready primary proxies traffic goes to the backup site; 0: when none is left."
  type        = number
  default     = 0
}

variable "hostname" {
  description = "The EKM's host name, as in its server.hosts."
  type        = string
}

variable "interconnect" {
  description = "VLAN attachments instead of VPNs; see modules/hybrid-interconnect."
  type = object({
    type         = string
    availability = string
    asn          = optional(number, 16550)
    attachments = map(object({
      region                   = string
      metro                    = string
      edge_availability_domain = number
      interconnect             = optional(string)
      peer_asn                 = optional(number)
      vlan_tag                 = optional(number)
      bandwidth                = optional(string)
      candidate_subnets        = optional(list(string))
      route_priority           = optional(number, 100)
    }))
  })
  default = null
}

variable "key_projects" {
  description = "The numbers of the key projects, by id. Their EKM service agents have to exist: see the README."
  type        = map(string)
}

variable "notification_channels" {
  description = "Ids of the notification channels that hear the alarms."
  type        = list(string)
  default     = []
}

variable "private_google_access" {
  description = "Announce the way to private.googleapis.com, for an EKM that fetches Google's token keys without internet access."
  type        = bool
  default     = false
}

variable "region" {
  description = "The region of the keys; Service Directory, and what the topology has of its own in Google Cloud, are there too."
  type        = string
}

variable "sites" {
  description = <<-EOT
    On-premises sites by name: the addresses of the EKM frontends, and the proxies that lead there. backup: gets traffic when the others are gone.
    To change images or machines, change one site, apply, watch, and then the next.
  EOT
  type = map(object({
    frontends          = list(string)
    frontend_port      = optional(number, 8443)
    backup             = bool
    image              = string
    instances          = optional(number, 3)
    machine_type       = optional(string, "e2-standard-2")
    boot_image         = optional(string)
    connect_timeout_ms = optional(number, 40)
  }))

  validation {
    condition     = alltrue([for name in keys(var.sites) : can(regex("^[a-z][a-z0-9-]{0,11}$", name))])
    error_message = "A site's name has lower-case letters, digits and hyphens, begins with a letter, and has 12 characters at most."
  }
  validation {
    condition = alltrue(flatten([
      for site in values(var.sites) : [
        for address in site.frontends : try(cidrhost("${address}/${split("/", var.subnet_range)[1]}", 0) != cidrhost(var.subnet_range, 0), false)
      ]
    ]))
    error_message = "A frontend's address is in the proxies' own subnet_range. Ranges of Google Cloud and of the sites must not overlap: the VPC would never send it to the site."
  }
  validation {
    condition     = length(distinct(flatten([for site in values(var.sites) : site.frontends]))) == length(flatten([for site in values(var.sites) : site.frontends]))
    error_message = "Two sites name the same frontend. Then a failover changes nothing."
  }
}

variable "subnet_range" {
  description = "The proxies' addresses; the sites' firewalls have to admit them to the EKM's port."
  type        = string

  validation {
    condition     = can(cidrhost(var.subnet_range, 0))
    error_message = "subnet_range is an IPv4 network such as 10.128.10.0/26."
  }
}

variable "suffix" {
  description = "Tells this deployment from every other one, earlier ones included: names of connections and key rings stay taken, and Cloud KMS keeps looking for a namespace in its first network."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9]{2,8}$", var.suffix))
    error_message = "suffix has between 2 and 8 lower-case letters and digits. Take a new one for a new deployment, also if the old one is gone."
  }
}

variable "vpc_project" {
  description = "The project of the VPC network, by id and by number."
  type = object({
    id     = string
    number = string
  })
}

variable "vpn" {
  description = "HA VPNs by site; see modules/hybrid-ha-vpn. region: the one that is closest to the site."
  type = map(object({
    region         = string
    asn            = optional(number, 64600)
    peer_addresses = list(string)
    tunnels = map(object({
      gateway_interface  = number
      peer_interface     = number
      google_bgp_address = string
      peer_bgp_address   = string
      peer_asn           = number
      route_priority     = optional(number, 100)
    }))
  }))
  default  = {}
  nullable = false

  validation {
    condition     = (length(var.vpn) > 0) != (var.interconnect != null)
    error_message = "Reach the sites in one way: by vpn or by interconnect. Give one of the two."
  }
}

variable "vpn_shared_secrets" {
  description = "Pre-shared keys by site and tunnel. In no state: hand them over as TF_VAR_vpn_shared_secrets at every apply."
  type        = map(map(string))
  default     = {}
  ephemeral   = true
  sensitive   = true
}

variable "vpn_shared_secrets_version" {
  description = "Count it up when the secrets have changed."
  type        = number
  default     = 1
}

variable "zones" {
  description = "The zones of the proxies, best three of the region."
  type        = list(string)
}
