variable "advertised_groups" {
  description = "What the router announces besides advertised_ranges."
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
  description = "The Cloud Router's own autonomous system number, a private one."
  type        = number
  default     = 64600

  validation {
    condition     = (var.asn >= 64512 && var.asn <= 65534) || (var.asn >= 4200000000 && var.asn <= 4294967294)
    error_message = "The router's ASN has to be a private one: 64512 to 65534, or 4200000000 to 4294967294."
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

variable "peer_addresses" {
  description = "The public addresses of the site's VPN devices: one, two or four."
  type        = list(string)

  validation {
    condition     = contains([1, 2, 4], length(var.peer_addresses))
    error_message = "A peer VPN gateway has one, two or four addresses; Google knows no other redundancy."
  }
  validation {
    condition     = alltrue([for address in var.peer_addresses : can(cidrhost("${address}/32", 0))])
    error_message = "The peer's addresses are public IPv4 addresses."
  }
}

variable "project_id" {
  description = "The project of the VPC network."
  type        = string
}

variable "region" {
  description = "The region of gateway and router: the one that is closest to the site."
  type        = string
}

variable "shared_secrets" {
  description = "The pre-shared key of each tunnel, by the tunnel's name. In no state: hand it over with TF_VAR_… or from a secret store, at every apply."
  type        = map(string)
  ephemeral   = true
  sensitive   = true

  validation {
    condition     = alltrue([for tunnel in keys(var.tunnels) : try(length(var.shared_secrets[tunnel]) >= 24, false)])
    error_message = "Every tunnel needs a shared secret of 24 characters at least under its own name: openssl rand -base64 24."
  }
}

variable "shared_secrets_version" {
  description = "Count it up when the secrets have changed: Terraform cannot see that they have."
  type        = number
  default     = 1
}

variable "tunnels" {
  description = <<-EOT
    Tunnels by name. gateway_interface: Google's, 0 or 1. peer_interface: the peer address's place in peer_addresses. The BGP addresses are the
    two hosts of a /30 in 169.254.0.0/16. route_priority: the MED that the site sees; equal ones share the traffic, the lower one gets it all.
  EOT
  type = map(object({
    gateway_interface  = number
    peer_interface     = number
    google_bgp_address = string
    peer_bgp_address   = string
    peer_asn           = number
    route_priority     = optional(number, 100)
  }))

  validation {
    condition     = toset([for tunnel in values(var.tunnels) : tunnel.gateway_interface]) == toset([0, 1])
    error_message = "The tunnels have to use both interfaces of Google's gateway, 0 and 1: with one alone there is no 99.99 %, and Google's own maintenance cuts the site off."
  }
  validation {
    condition     = toset([for tunnel in values(var.tunnels) : tunnel.peer_interface]) == toset(range(length(var.peer_addresses)))
    error_message = "Every address in peer_addresses needs a tunnel, and no tunnel may name another: peer_interface is the address's place, counted from 0."
  }
  validation {
    condition = alltrue([
      for tunnel in values(var.tunnels) : alltrue([
        for address in [tunnel.google_bgp_address, tunnel.peer_bgp_address] :
        startswith(address, "169.254.") && try(contains([cidrhost("${address}/30", 1), cidrhost("${address}/30", 2)], address), false)
      ]) && try(cidrsubnet("${tunnel.google_bgp_address}/30", 0, 0) == cidrsubnet("${tunnel.peer_bgp_address}/30", 0, 0), false) && tunnel.google_bgp_address != tunnel.peer_bgp_address
    ])
    error_message = "A tunnel's two BGP addresses are the two hosts of one /30 in 169.254.0.0/16, such as 169.254.10.1 and 169.254.10.2."
  }
  validation {
    condition     = length(distinct([for tunnel in values(var.tunnels) : try(cidrsubnet("${tunnel.google_bgp_address}/30", 0, 0), "")])) == length(var.tunnels)
    error_message = "Two tunnels have BGP addresses in the same /30. Each session needs one of its own."
  }
  validation {
    condition     = alltrue([for tunnel in values(var.tunnels) : tunnel.peer_asn != var.asn])
    error_message = "The site's ASN is the Cloud Router's own: they have to differ."
  }
  validation {
    condition     = length(distinct([for tunnel in values(var.tunnels) : tunnel.peer_asn])) <= 1
    error_message = "The tunnels of one site have one peer ASN. A second site gets a module call of its own."
  }
}
