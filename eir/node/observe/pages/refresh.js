const away=document.querySelector(".away");
let since;
setInterval(async()=>{
try{
const answer=await fetch("/",{cache:"no-store",signal:AbortSignal.timeout(PERIOD)});
if(!answer.ok)throw answer.status;
const now=new DOMParser().parseFromString(await answer.text(),"text/html");
for(const part of document.querySelectorAll(".live")){
const fresh=now.getElementById(part.id);
for(const folded of part.querySelectorAll("details[open]"))now.getElementById(folded.id)?.setAttribute("open","");
part.replaceWith(fresh);
}
document.title=now.title;
since=undefined;
away.hidden=true;
}catch{
since??=new Date().toISOString().slice(11,16);
away.textContent=`The node is not reached since ${since} UTC. This page shows what it was before.`;
away.hidden=false;
}
},PERIOD);
addEventListener("beforeprint",()=>{for(const folded of document.querySelectorAll("details"))folded.open=true});
