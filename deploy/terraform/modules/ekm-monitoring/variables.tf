variable "availability_goal" {
  description = "Share of requests that succeed, over 28 days."
  type        = number
  default     = 0.9999

  validation {
    condition     = var.availability_goal > 0.9 && var.availability_goal < 1
    error_message = "availability_goal is a share between 0.9 and 1, such as 0.9999; 1 would leave no budget to burn."
  }
}

variable "latency_goal" {
  description = "Share of requests within latency_ms, over 28 days."
  type        = number
  default     = 0.999

  validation {
    condition     = var.latency_goal > 0.9 && var.latency_goal < 1
    error_message = "latency_goal is a share between 0.9 and 1, such as 0.999; 1 would leave no budget to burn."
  }
}

variable "latency_ms" {
  description = "What is quick enough, as Cloud KMS measures it, way included."
  type        = number
  default     = 100

  validation {
    condition     = var.latency_ms > 0 && var.latency_ms < 150
    error_message = "latency_ms has to be below 150: after 150 ms Cloud KMS has given up, and an alarm there tells of failures only."
  }
}

variable "name" {
  description = "What dashboard, objectives and alarms are called; also the service's id."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,61}[a-z0-9]$", var.name))
    error_message = "The name has lower-case letters, digits and hyphens, begins with a letter, and has between 2 and 63 characters."
  }
}

variable "notification_channels" {
  description = "Ids of the notification channels that hear the alarms. Without one nobody does."
  type        = list(string)
  default     = []
}

variable "project_id" {
  description = "The key project: the metrics are there."
  type        = string
}
