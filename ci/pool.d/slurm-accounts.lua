-- Which accounts Slurm takes (it knows them in small letters). A site's Slurm asks its accounting database.
local ACCOUNTS = { ["fermi:l1"] = true, ["fermi"] = true }
local ESLURM_INVALID_ACCOUNT = 2045

function slurm_job_submit(job, _, _)
   if ACCOUNTS[string.lower(job.account or "")] then return slurm.SUCCESS end
   return ESLURM_INVALID_ACCOUNT
end

function slurm_job_modify(_, _, _, _) return slurm.SUCCESS end
