variable "advertised_groups" {
  description = "What the routers announce besides advertised_ranges."
  type        = list(string)
  default     = ["ALL_SUBNETS"]

  validation {
    condition     = contains(var.advertised_groups, "ALL_SUBNETS")
    error_message = "A router that announces ranges of its own announces nothing else: without ALL_SUBNETS the site loses its routes to every subnet of this VPC, proxies included. Leave it in, and filter at the site."
  }
}

variable "advertised_ranges" {
  description = "Google's ranges that call the site, for the way back; from the module google-ranges."
  type        = list(string)

  validation {
    condition     = alltrue([for range in var.advertised_ranges : can(cidrhost(range, 0)) && try(cidrsubnet(range, 0, 0) == range, false)])
    error_message = "A range to announce is an IPv4 network such as 192.0.2.0/24, without host bits."
  }
}

variable "asn" {
  description = "The Cloud Routers' own autonomous system number. PARTNER: 16550."
  type        = number
  default     = 16550

  validation {
    condition     = var.type != "PARTNER" || var.asn == 16550
    error_message = "A Partner Interconnect needs the Cloud Router's ASN to be 16550."
  }
  validation {
    condition     = var.asn == 16550 || (var.asn >= 64512 && var.asn <= 65534) || (var.asn >= 4200000000 && var.asn <= 4294967294)
    error_message = "The routers' ASN is 16550 or a private one: 64512 to 65534, or 4200000000 to 4294967294."
  }
}

variable "attachments" {
  description = <<-EOT
    VLAN attachments by name. metro and edge_availability_domain (1 or 2) say where each one ends: they are what the tier is made of.
    DEDICATED also needs interconnect (its URL) and peer_asn, and takes vlan_tag, bandwidth ("BPS_1G"), candidate_subnets, route_priority.
  EOT
  type = map(object({
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

  validation {
    condition     = alltrue([for attachment in values(var.attachments) : contains([1, 2], attachment.edge_availability_domain)])
    error_message = "edge_availability_domain is 1 or 2."
  }
  validation {
    condition = var.availability != "99.9" || (
      length(var.attachments) == 2 && length(distinct([for attachment in values(var.attachments) : attachment.region])) == 1 &&
      length(distinct([for attachment in values(var.attachments) : attachment.metro])) == 1 &&
      toset([for attachment in values(var.attachments) : attachment.edge_availability_domain]) == toset([1, 2])
    )
    error_message = "The 99.9 tier is two attachments in one region and one metro, one in each edge availability domain (1 and 2)."
  }
  validation {
    condition = var.availability != "99.99" || (
      length(var.attachments) >= 4 && length(distinct([for attachment in values(var.attachments) : attachment.region])) == 2 &&
      length(distinct([for attachment in values(var.attachments) : attachment.metro])) == 2 &&
      length(distinct([for attachment in values(var.attachments) : "${attachment.region} ${attachment.metro}"])) == 2 &&
      length(distinct([for attachment in values(var.attachments) : "${attachment.metro} ${attachment.edge_availability_domain}"])) == 4
    )
    error_message = "The 99.99 tier is four attachments: two regions, each over a metro of its own, one attachment in each edge availability domain (1 and 2) of each metro."
  }
  validation {
    condition     = var.type != "DEDICATED" || alltrue([for attachment in values(var.attachments) : attachment.interconnect != null && attachment.peer_asn != null])
    error_message = "Each attachment of a Dedicated Interconnect needs the URL of its interconnect and the site's peer_asn."
  }
  validation {
    condition = var.type != "PARTNER" || alltrue([
      for attachment in values(var.attachments) :
      attachment.interconnect == null && attachment.peer_asn == null && attachment.vlan_tag == null && attachment.bandwidth == null && attachment.candidate_subnets == null
    ])
    error_message = "With PARTNER the partner sets interconnect, ASN, VLAN, bandwidth and addresses: leave interconnect, peer_asn, vlan_tag, bandwidth and candidate_subnets out."
  }
  validation {
    condition     = var.type != "DEDICATED" || length(distinct([for attachment in values(var.attachments) : attachment.interconnect])) == length(var.attachments)
    error_message = "Two attachments are on the same interconnect: they fail together, so the tier is not met. Each needs an interconnect of its own."
  }
}

variable "availability" {
  description = "Google's tier: 99.9 (one region) or 99.99 (two regions)."
  type        = string

  validation {
    condition     = contains(["99.9", "99.99"], var.availability)
    error_message = "availability is \"99.9\" or \"99.99\"."
  }
}

variable "mtu" {
  description = "Of the attachments, in bytes; the network's own has to be the same."
  type        = number
  default     = 1460

  validation {
    condition     = contains([1440, 1460, 1500, 8896], var.mtu)
    error_message = "An attachment's MTU is 1440, 1460, 1500 or 8896."
  }
}

variable "name" {
  description = "Prefix of all names."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,29}[a-z0-9]$", var.name))
    error_message = "The name has lower-case letters, digits and hyphens, begins with a letter, and has between 2 and 31 characters."
  }
}

variable "network" {
  description = "The VPC network: its id, and its routing_mode."
  type = object({
    id           = string
    routing_mode = string
  })
}

variable "project_id" {
  description = "The project of the VPC network."
  type        = string
}

variable "single_region" {
  description = "Whether the keys are in a single region; then the 99.99 tier, which is two, gives a warning."
  type        = bool
  default     = true
}

variable "type" {
  description = "DEDICATED or PARTNER."
  type        = string

  validation {
    condition     = contains(["DEDICATED", "PARTNER"], var.type)
    error_message = "type is DEDICATED or PARTNER."
  }
}
