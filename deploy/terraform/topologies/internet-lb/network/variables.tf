variable "connections_per_frontend" {
  description = "How many connections a frontend should have; below its limits.max_connections."
  type        = number
  default     = 1500
}

variable "dns_zone" {
  description = "The Cloud DNS zone that has the host name. Without one make the A record yourself, before the kms stage."
  type = object({
    project_id = string
    name       = string
  })
  default = null
}

variable "frontend_port" {
  description = "The port where the frontends speak TLS."
  type        = number
  default     = 8443
}

variable "health_path" {
  description = "/readyz, or /readyz?shard=NAME."
  type        = string
  default     = "/readyz"
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

variable "sites" {
  description = "On-premises sites by name: a zone of the closest region, and the frontends' addresses; see modules/internet-proxy-nlb."
  type = map(object({
    zone      = string
    addresses = set(string)
  }))

  validation {
    condition     = alltrue([for name in keys(var.sites) : can(regex("^[a-z][a-z0-9-]{0,11}$", name))])
    error_message = "A site's name has lower-case letters, digits and hyphens, begins with a letter, and has 12 characters at most."
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
