# The modules that these go to check them, and say more.

variable "crypto_space_path" {
  description = "For CLOUD_KMS: the crypto space at the EKM in which Cloud KMS makes keys."
  type        = string
  default     = null
}

variable "hostname" {
  description = "The EKM's host name."
  type        = string
}

variable "key_management_mode" {
  description = "MANUAL or CLOUD_KMS."
  type        = string
  default     = "MANUAL"
}

variable "keys" {
  description = "Keys by name; see modules/external-key."
  type = map(object({
    purpose                    = optional(string)
    algorithm                  = optional(string)
    rotation_period            = optional(string)
    destroy_scheduled_duration = optional(string)
    labels                     = optional(map(string))
    versions = optional(map(object({
      path    = string
      enabled = optional(bool)
    })))
  }))
  default = {}
}

variable "location" {
  description = "The region of everything."
  type        = string
}

variable "name" {
  description = "The name of connection, key ring and monitoring."
  type        = string
}

variable "notification_channels" {
  description = "Ids of the notification channels that hear the alarms."
  type        = list(string)
  default     = []
}

variable "project_id" {
  description = "The key project."
  type        = string
}

variable "server_certificates_pem" {
  description = "The EKM's server certificates in PEM: one to ten leaves."
  type        = list(string)
}

variable "service_directory_service" {
  description = "The Service Directory service of the network stage."
  type        = string
}
