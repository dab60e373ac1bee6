# The bucket and the way in, planned with a provider that invents what AWS would say; needs no account.

mock_provider "aws" {
  mock_data "aws_iam_policy_document" {
    defaults = { json = "{\"Version\":\"2012-10-17\",\"Statement\":[]}" }
  }
}

variables {
  region   = "eu-west-1"
  bucket   = "segtrain-of-a-test"
  ssh_cidr = "203.0.113.7/32"
}

run "the_bucket_is_closed_encrypted_and_keeps_versions_for_a_while" {
  assert {
    condition = alltrue([
      aws_s3_bucket_public_access_block.data.block_public_acls,
      aws_s3_bucket_public_access_block.data.block_public_policy,
      aws_s3_bucket_public_access_block.data.ignore_public_acls,
      aws_s3_bucket_public_access_block.data.restrict_public_buckets,
    ])
    error_message = "The bucket may become public."
  }

  assert {
    condition     = one(one(aws_s3_bucket_server_side_encryption_configuration.data.rule).apply_server_side_encryption_by_default).sse_algorithm == "AES256"
    error_message = "The bucket is not encrypted."
  }

  assert {
    condition     = aws_s3_bucket_versioning.data.versioning_configuration[0].status == "Enabled"
    error_message = "The bucket keeps no versions."
  }

  assert {
    condition = (
      aws_s3_bucket_lifecycle_configuration.data.rule[0].noncurrent_version_expiration[0].noncurrent_days == 7
      && aws_s3_bucket_lifecycle_configuration.data.rule[0].expiration[0].expired_object_delete_marker
      && aws_s3_bucket_lifecycle_configuration.data.rule[1].abort_incomplete_multipart_upload[0].days_after_initiation == 2
      && alltrue([for rule in aws_s3_bucket_lifecycle_configuration.data.rule : rule.status == "Enabled"])
    )
    error_message = "Old versions or broken uploads stay for ever."
  }

  assert {
    condition     = !aws_s3_bucket.data.force_destroy
    error_message = "terraform destroy would delete the data unasked."
  }
}

run "the_only_way_in_is_ssh_from_the_given_range" {
  assert {
    condition = (
      aws_vpc_security_group_ingress_rule.ssh.cidr_ipv4 == var.ssh_cidr
      && aws_vpc_security_group_ingress_rule.ssh.from_port == 22
      && aws_vpc_security_group_ingress_rule.ssh.to_port == 22
      && aws_vpc_security_group_ingress_rule.each_other.referenced_security_group_id == aws_security_group.cluster.id
      && aws_vpc_security_group_ingress_rule.each_other.cidr_ipv4 == null
    )
    error_message = "More than SSH is open."
  }
}

run "the_outputs_name_what_cluster_yaml_needs" {
  assert {
    condition = alltrue([
      for part in [output.region, output.machine_image_id, output.security_group_id, "segtrain-node", "segtrain-head"] :
      strcontains(output.cluster_yaml_edits, part)
    ]) && output.bucket_url == "s3://segtrain-of-a-test" && output.image_repository_url == null
    error_message = "The edits leave something out: ${output.cluster_yaml_edits}"
  }
}

run "a_private_image_repository_is_made_on_request" {
  variables {
    image_repository = "segtrain"
  }

  assert {
    condition     = length(aws_ecr_repository.image) == 1 && length(aws_iam_role_policy.pull) == 2
    error_message = "No repository, or one that the machines cannot pull from."
  }
}

run "ssh_from_everywhere_is_refused" {
  command = plan

  variables {
    ssh_cidr = "0.0.0.0/0"
  }

  expect_failures = [var.ssh_cidr]
}

run "a_name_that_is_no_bucket_is_refused" {
  command = plan

  variables {
    bucket = "My_Bucket"
  }

  expect_failures = [var.bucket]
}
