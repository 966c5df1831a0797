variable "key_projects" {
  description = "Key projects by id, each with a connection of its own; keys: see modules/external-key."
  type = map(object({
    key_management_mode   = optional(string, "MANUAL")
    crypto_space_path     = optional(string)
    notification_channels = optional(list(string), [])
    keys = optional(map(object({
      purpose                    = optional(string, "ENCRYPT_DECRYPT")
      algorithm                  = optional(string, "EXTERNAL_SYMMETRIC_ENCRYPTION")
      rotation_period            = optional(string)
      destroy_scheduled_duration = optional(string, "2592000s")
      labels                     = optional(map(string), {})
      versions = optional(map(object({
        path    = string
        enabled = optional(bool, true)
      })), {})
    })), {})
  }))

  validation {
    condition     = alltrue([for project in keys(var.key_projects) : contains(var.network.key_projects, project)])
    error_message = "A key project is not among the network stage's key_projects, so its EKM service agent has no access. Add it there, apply that stage, and write its output again."
  }
}

variable "network" {
  description = "The network stage's output for_kms, from network.auto.tfvars.json."
  type = object({
    suffix                    = string
    location                  = string
    hostname                  = string
    service_directory_service = string
    key_projects              = list(string)
  })
}

variable "server_certificate_files" {
  description = "PEM files with the EKM's server certificates, one leaf in each: the present one, and the next one before it is used."
  type        = list(string)

  validation {
    condition     = alltrue([for name in var.server_certificate_files : fileexists(name)])
    error_message = "A certificate file is not there. Paths count from this directory."
  }
}
