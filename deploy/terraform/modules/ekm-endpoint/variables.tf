variable "address" {
  description = "The one address behind which all EKM frontends are: the on-premises load balancer's, or the internal load balancer's."
  type        = string

  validation {
    condition     = can(cidrhost("${var.address}/32", 0))
    error_message = "The endpoint's address has to be an IPv4 address, such as 10.20.0.10."
  }
}

variable "key_project_numbers" {
  description = "The numbers of the projects whose keys use this endpoint; each has an EKM service agent, which gets access."
  type        = set(string)

  validation {
    condition     = length(var.key_project_numbers) > 0 && alltrue([for number in var.key_project_numbers : can(regex("^[0-9]+$", number))])
    error_message = "Name at least one key project by its number (gcloud projects describe ID --format='value(projectNumber)'), not by its id."
  }
}

variable "location" {
  description = "The region of the namespace. The EKM connection and its keys have to be in the same one."
  type        = string

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]+$", var.location))
    error_message = "Service Directory and EXTERNAL_VPC keys live in a region, such as europe-west3. For keys in a multi-region take the topology internet-lb."
  }
}

variable "name" {
  description = "The namespace's name. Never give it to a second deployment: Cloud KMS keeps looking in the first one's network."
  type        = string

  validation {
    condition     = can(regex("^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$", var.name))
    error_message = "A namespace's name has lower-case letters, digits and hyphens, begins with a letter, and has 63 characters at most."
  }
}

variable "network_name" {
  description = "The name of the VPC network that has the address; for an on-premises address the one that owns the tunnels or attachments."
  type        = string

  validation {
    condition     = can(regex("^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$", var.network_name))
    error_message = "Give the network's name alone, not its path: Service Directory writes the path in another way than Compute Engine."
  }
}

variable "port" {
  description = "The port where the EKM, or what stands before it, speaks TLS."
  type        = number

  validation {
    condition     = var.port >= 1 && var.port <= 65535 && floor(var.port) == var.port
    error_message = "The endpoint's port has to be between 1 and 65535; Service Directory itself would take 0 and reach nobody."
  }
}

variable "vpc_project" {
  description = "The project of the VPC network, by id and by number."
  type = object({
    id     = string
    number = string
  })

  validation {
    condition     = can(regex("^[0-9]+$", var.vpc_project.number))
    error_message = "vpc_project.number is the project's number (gcloud projects describe ID --format='value(projectNumber)'), not its id."
  }
}
