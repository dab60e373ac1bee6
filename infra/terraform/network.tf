# One group for all machines: they reach each other on every port, and you reach them by SSH. Ray's dashboard and job
# server are reached through SSH (`ray dashboard`); none of Ray's ports is open to anybody else.

data "aws_vpc" "chosen" {
  id      = var.vpc_id
  default = var.vpc_id == null ? true : null
}

resource "aws_security_group" "cluster" {
  name        = "${var.cluster_name}-cluster"
  description = "Machines of the Ray cluster ${var.cluster_name}"
  vpc_id      = data.aws_vpc.chosen.id
}

resource "aws_vpc_security_group_ingress_rule" "each_other" {
  security_group_id            = aws_security_group.cluster.id
  referenced_security_group_id = aws_security_group.cluster.id
  ip_protocol                  = "-1"
}

resource "aws_vpc_security_group_ingress_rule" "ssh" {
  security_group_id = aws_security_group.cluster.id
  description       = "SSH"
  cidr_ipv4         = var.ssh_cidr
  from_port         = 22
  to_port           = 22
  ip_protocol       = "tcp"
}

resource "aws_vpc_security_group_egress_rule" "out" {
  security_group_id = aws_security_group.cluster.id
  description       = "S3, the image registry, AWS's interfaces"
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "-1"
}
