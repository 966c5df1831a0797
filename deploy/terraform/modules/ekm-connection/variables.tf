variable "crypto_space_path" {
  description = "For CLOUD_KMS: the path of the crypto space at the EKM in which Cloud KMS makes keys, such as v0/cryptospaces/cloud."
  type        = string
  default     = null

  validation {
    condition     = (var.crypto_space_path != null) == (var.key_management_mode == "CLOUD_KMS")
    error_message = "key_management_mode CLOUD_KMS needs a crypto_space_path ('ekm space allow-creation' opens the space), and MANUAL takes none."
  }
  validation {
    condition     = var.crypto_space_path == null || can(regex("^v0/cryptospaces(/[A-Za-z0-9_.~@+=-]+)+$", var.crypto_space_path))
    error_message = "The crypto space's path is as the EKM prints it, without a slash before it: v0/cryptospaces/NAME."
  }
}

variable "hostname" {
  description = "The EKM's host name, for TLS and HTTP. It has to be in the EKM's server.hosts, and https://HOSTNAME in its auth.audiences."
  type        = string

  validation {
    condition     = can(regex("^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?$", var.hostname))
    error_message = "Give the host name alone, in lower case: no https://, no port, no path."
  }
}

variable "key_management_mode" {
  description = "MANUAL: keys are made at the EKM and named here. CLOUD_KMS: Cloud KMS makes and destroys them at the EKM."
  type        = string
  default     = "MANUAL"

  validation {
    condition     = contains(["MANUAL", "CLOUD_KMS"], var.key_management_mode)
    error_message = "key_management_mode is MANUAL or CLOUD_KMS."
  }
}

variable "location" {
  description = "The region of the connection and of its keys: the Service Directory namespace's own."
  type        = string

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]+$", var.location))
    error_message = "An EKM connection lives in a region, such as europe-west3: EXTERNAL_VPC has no multi-regions. For keys in one take the topology internet-lb."
  }
}

variable "name" {
  description = "The connection's name. It stays taken for ever, so it should tell this deployment from others."
  type        = string

  validation {
    condition     = can(regex("^[a-zA-Z0-9_-]{1,63}$", var.name))
    error_message = "A connection's name has letters, digits, hyphens and underscores, 63 characters at most."
  }
}

variable "project_id" {
  description = "The key project: connections belong to the project of the keys that use them."
  type        = string
}

variable "server_certificates_pem" {
  description = "The EKM's server certificates in PEM, one leaf in each. They are pinned: before the EKM changes its certificate, have the old and the new one here."
  type        = list(string)

  validation {
    condition     = length(var.server_certificates_pem) >= 1 && length(var.server_certificates_pem) <= 10
    error_message = "A connection pins between one and ten server certificates. Take out those that the EKM no longer presents."
  }
  validation {
    condition = alltrue([
      for pem in var.server_certificates_pem :
      length(regexall("-----BEGIN ", pem)) == 1 && can(regex("^\\s*-----BEGIN CERTIFICATE-----\\s+MI[A-Za-z0-9+/\\s]+=*\\s*-----END CERTIFICATE-----\\s*$", pem))
    ])
    error_message = "Each entry is one certificate in PEM: the leaf that the EKM presents, without its chain and without the private key."
  }
  validation {
    condition     = length(distinct([for pem in var.server_certificates_pem : replace(pem, "/\\s/", "")])) == length(var.server_certificates_pem)
    error_message = "The same certificate stands there twice. For a change of certificates the old and the new one belong here."
  }
}

variable "service_directory_service" {
  description = "The Service Directory service: projects/PROJECT/locations/LOCATION/namespaces/NAMESPACE/services/SERVICE."
  type        = string

  validation {
    condition     = can(regex("^projects/[^/]+/locations/[^/]+/namespaces/[^/]+/services/[^/]+$", var.service_directory_service))
    error_message = "service_directory_service is projects/PROJECT/locations/LOCATION/namespaces/NAMESPACE/services/SERVICE: the output of the network stage."
  }
  validation {
    condition     = can(regex("/locations/${var.location}/", var.service_directory_service))
    error_message = "The Service Directory service is in another location than the EKM connection. Both have to be in the same region: Cloud KMS looks nowhere else."
  }
}
